"""Pages of adapters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, page
from lokr_serve.types import AdapterStatus
from tests.serve.rpc.statuses import adapter_status

IDS = st.lists(st.from_regex(r"[a-c][a-c0-9/]{0,3}", fullmatch=True), unique=True, max_size=12)


def statuses(ids: list[str]) -> list[AdapterStatus]:
    """Return adapters of these ids, sorted."""
    return [adapter_status(adapter_id) for adapter_id in sorted(ids)]


@given(ids=IDS, size=st.integers(1, 5))
def test_pages_follow_each_other_without_gap_or_overlap(ids: list[str], size: int) -> None:
    """A caller that follows the tokens sees each adapter once."""
    adapters = statuses(ids)
    seen: list[AdapterStatus] = []
    found = page(adapters, size=size, token="", prefix="")
    seen.extend(found.adapters)
    while found.next_token:
        found = page(adapters, size=size, token=found.next_token, prefix="")
        seen.extend(found.adapters)

    assert seen == adapters


def test_a_token_stays_right_when_its_adapter_has_gone() -> None:
    """Adapters come and go between two pages; the others must still be seen once."""
    token = page(statuses(["a", "b", "c", "d"]), size=2, token="", prefix="").next_token
    found = page(statuses(["a", "c", "d"]), size=2, token=token, prefix="")

    assert [adapter.adapter_id for adapter in found.adapters] == ["c", "d"]


def test_size_zero_is_the_default() -> None:
    """An unset size must not return everything."""
    adapters = statuses([f"a{i}" for i in range(DEFAULT_PAGE_SIZE + 1)])

    assert len(page(adapters, size=0, token="", prefix="").adapters) == DEFAULT_PAGE_SIZE


def test_too_large_a_page_is_refused() -> None:
    """A page is one message; it must not be cut without a word."""
    with pytest.raises(InvalidRequestError, match="page_size"):
        page([], size=MAX_PAGE_SIZE + 1, token="", prefix="")


@pytest.mark.parametrize("token", ["x", "%%%", "ж", "YQ=="])
def test_a_token_that_was_never_given_is_refused(token: str) -> None:
    """A guess must not read as the first page."""
    with pytest.raises(InvalidRequestError, match="page_token"):
        page(statuses(["a", "b"]), size=1, token=token, prefix="")


def test_a_token_of_another_filter_is_refused() -> None:
    """Mixing filters would skip adapters."""
    token = page(statuses(["a1", "a2"]), size=1, token="", prefix="a").next_token

    with pytest.raises(InvalidRequestError, match="page_token"):
        page(statuses(["a1", "a2"]), size=1, token=token, prefix="")

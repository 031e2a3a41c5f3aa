"""Pages of adapters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page, page

IDS = st.lists(st.from_regex(r"[a-c][a-c0-9/]{0,3}", fullmatch=True), unique=True, max_size=12)


def page_of(ids: list[str], *, size: int, token: str = "", prefix: str = "") -> Page:
    """Return a page of ids that may all be shown."""
    return page(sorted(ids), lambda _: True, size=size, token=token, prefix=prefix)


@given(ids=IDS, shown=st.sets(st.sampled_from("abc")), size=st.integers(1, 5))
def test_pages_follow_each_other_without_gap_or_overlap(
    ids: list[str], shown: set[str], size: int
) -> None:
    """A caller that follows the tokens sees each adapter of its own once, and no other."""
    pages: list[Page] = []
    while not pages or pages[-1].next_token:
        token = pages[-1].next_token if pages else ""
        pages.append(page(sorted(ids), lambda i: i[0] in shown, size=size, token=token, prefix=""))
    wanted = sorted(adapter_id for adapter_id in ids if adapter_id[0] in shown)

    assert [adapter_id for found in pages for adapter_id in found.ids] == wanted
    assert all(len(found.ids) == size for found in pages[:-1])
    assert len(pages) == max(1, -(-len(wanted) // size))


def test_a_page_asks_for_no_rights_beyond_its_end() -> None:
    """A store of thousands is not walked through for each of its pages."""
    asked: list[str] = []

    def is_shown(adapter_id: str) -> bool:
        asked.append(adapter_id)
        return adapter_id != "c"

    found = page(list("abcdefgh"), is_shown, size=2, token="", prefix="")
    page(list("abcdefgh"), is_shown, size=2, token=found.next_token, prefix="")

    assert asked == ["a", "b", "c", "d", "c", "d", "e", "f"]


def test_a_token_stays_right_when_its_adapter_has_gone() -> None:
    """Adapters come and go between two pages; the others must still be seen once."""
    token = page_of(["a", "b", "c", "d"], size=2).next_token
    found = page_of(["a", "c", "d"], size=2, token=token)

    assert found.ids == ["c", "d"]


def test_size_zero_is_the_default() -> None:
    """An unset size must not return everything."""
    ids = [f"a{i}" for i in range(DEFAULT_PAGE_SIZE + 1)]

    assert len(page_of(ids, size=0).ids) == DEFAULT_PAGE_SIZE


def test_too_large_a_page_is_refused() -> None:
    """A page is one message; it must not be cut without a word."""
    with pytest.raises(InvalidRequestError, match="page_size"):
        page_of([], size=MAX_PAGE_SIZE + 1)


@pytest.mark.parametrize("token", ["x", "%%%", "ж", "YQ=="])
def test_a_token_that_was_never_given_is_refused(token: str) -> None:
    """A guess must not read as the first page."""
    with pytest.raises(InvalidRequestError, match="page_token"):
        page_of(["a", "b"], size=1, token=token)


def test_a_token_of_another_filter_is_refused() -> None:
    """Mixing filters would skip adapters."""
    token = page_of(["a1", "a2"], size=1, prefix="a").next_token

    with pytest.raises(InvalidRequestError, match="page_token"):
        page_of(["a1", "a2"], size=1, token=token)

"""What is said of a request for adapters that can never be right."""

from collections.abc import Callable

import pytest

from lokr_core import ADAPTER_ID_RULE, LokrError, check_adapter_id
from lokr_serve.adapters.leasing import require_adapter_id
from lokr_serve.adapters.manifest.reading import read_manifest

CHECKS: list[Callable[[str], object]] = [
    check_adapter_id,
    lambda text: require_adapter_id("adapter_id", text),
    lambda text: read_manifest(f"adapters: [{{id: {text}, source: x}}]".encode()),
]


@pytest.mark.parametrize("check", CHECKS, ids=["core", "request", "manifest"])
def test_what_an_id_may_be_is_told_the_same_way_everywhere(check: Callable[[str], object]) -> None:
    """One rule in three wordings reads as three rules."""
    with pytest.raises(LokrError) as caught:
        check("../a")

    assert str(caught.value).endswith(f"'../a' is no adapter id: {ADAPTER_ID_RULE}")

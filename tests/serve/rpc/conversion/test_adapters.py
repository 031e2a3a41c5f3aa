"""Requests about adapters that can never be right."""

import math

import pytest

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.adapters import load_spec
from lokr_serve.v1.adapters_pb2 import LoadAdapterRequest


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (LoadAdapterRequest(adapter_id="a"), "source"),
        (LoadAdapterRequest(adapter_id="a", source="a", digest="12"), "digest"),
        (LoadAdapterRequest(adapter_id="a", source="a", digest="md5:" + "a" * 64), "digest"),
        (LoadAdapterRequest(adapter_id="a", source="a", rank=0), "rank"),
        (LoadAdapterRequest(adapter_id="a", source="a", alpha=math.inf), "alpha"),
        (LoadAdapterRequest(adapter_id="a", source="a", scale_override=math.nan), "scale_override"),
    ],
)
def test_a_load_that_can_never_work_is_refused(message: LoadAdapterRequest, field: str) -> None:
    """The caller learns which field to change before a file is opened."""
    with pytest.raises(InvalidRequestError) as caught:
        load_spec(message)

    assert caught.value.field == field


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_digest_is_read_in_any_spelling(prefix: str) -> None:
    """Tools print digests in either case, with or without the name of the algorithm."""
    message = LoadAdapterRequest(adapter_id="a", source="a", digest=prefix + "AB" * 32)

    assert load_spec(message).digest == "ab" * 32


def test_unset_differs_from_zero() -> None:
    """A scale of 0 switches an adapter off; an unset one takes the file's."""
    bare = load_spec(LoadAdapterRequest(adapter_id="a", source="a"))
    zero = load_spec(LoadAdapterRequest(adapter_id="a", source="a", scale_override=0, alpha=0))

    assert (bare.overrides.scale_override, bare.overrides.alpha) == (None, None)
    assert (zero.overrides.scale_override, zero.overrides.alpha) == (0, 0)
    assert bare.ttl_seconds is None

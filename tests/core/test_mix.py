"""AdapterMix is canonical: one mix has one value, one hash and one name."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lokr_core import (
    Adapter,
    AdapterMix,
    AdapterRef,
    MixError,
    MixPart,
    attach,
    check_adapter_id,
)
from tests.core.factors import make_base, random_adapter

WEIGHTS = st.floats(allow_nan=False, allow_infinity=False)


def ref(adapter_id: str, version: str = "0" * 16) -> AdapterRef:
    """Return a ref."""
    return AdapterRef(adapter_id=adapter_id, version=version)


def test_the_empty_mix_is_the_base_model() -> None:
    """The base model needs no name of its own."""
    assert AdapterMix().is_base
    assert AdapterMix().name == ""
    assert AdapterMix.of({}) == AdapterMix()


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        (1, "a"),
        (1.0, "a"),
        (-1.0, "a*-1"),
        (0.7, "a*0.7"),
        (2, "a*2"),
        (1e-7, "a*0.0000001"),
        (1e22, "a*10000000000000000000000"),
        (0.1 + 0.2, "a*0.30000000000000004"),
    ],
)
def test_names_hold_the_shortest_positional_decimal(weight: float, name: str) -> None:
    """Gateways hash the name, so every client must write it alike."""
    assert AdapterMix.of({ref("a"): weight}).name == name


@given(weight=WEIGHTS.filter(lambda w: w != 0))
def test_the_named_weight_reads_back_exactly(weight: float) -> None:
    """Two different weights never share a name."""
    name = AdapterMix.of({ref("a"): weight}).name

    assert "e" not in name
    assert float(Decimal(name.removeprefix("a*") if "*" in name else "1")) == weight


@given(weights=st.dictionaries(st.sampled_from("abcdefgh"), WEIGHTS), shuffled=st.randoms())
def test_mixes_do_not_depend_on_order(weights: dict[str, float], shuffled: object) -> None:
    """Two callers who name the same adapters share a batch and a cache entry."""
    given_order = AdapterMix.of({ref(i): w for i, w in weights.items()})
    other_order = AdapterMix.of({ref(i): w for i, w in sorted(weights.items(), reverse=True)})

    assert given_order == other_order
    assert hash(given_order) == hash(other_order)
    assert given_order.name == other_order.name


def test_parts_are_sorted_by_id_in_the_name() -> None:
    """The name is canonical."""
    assert AdapterMix.of({ref("b/x"): 0.5, ref("a"): 1}).name == "a+b/x*0.5"


def test_weight_zero_without_patterns_is_dropped() -> None:
    """Such a part does nothing, and a mix of nothing is the base."""
    assert AdapterMix.of({ref("a"): 0, ref("b"): -0.0}).is_base
    assert not AdapterMix.of({ref("a"): 0}, {ref("a"): {"*": 1.0}}).is_base


def test_negative_zero_is_zero() -> None:
    """Equal mixes have equal names, although -0.0 is written differently."""
    plain = AdapterMix.of({ref("a"): 0.0}, {ref("a"): {"x": 0.0, "y": 1.0}})
    negative = AdapterMix.of({ref("a"): -0.0}, {ref("a"): {"x": -0.0, "y": 1.0}})

    assert plain == negative
    assert plain.name == negative.name


def test_module_weights_add_a_hash_to_the_name() -> None:
    """Mixes that differ in one pattern's weight are different mixes."""
    one = AdapterMix.of({ref("a"): 0.5}, {ref("a"): {"*.q": 0.1, "*.k": 0.2}})
    same = AdapterMix.of({ref("a"): 0.5}, {ref("a"): {"*.k": 0.2, "*.q": 0.1}})
    other = AdapterMix.of({ref("a"): 0.5}, {ref("a"): {"*.q": 0.1, "*.k": 0.3}})

    assert one == same
    assert one.name == same.name
    assert one.name.startswith("a*0.5@")
    assert len(one.name) == len("a*0.5@") + 8
    assert other != one
    assert other.name != one.name


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_must_be_finite(weight: float) -> None:
    """A NaN would make every output NaN, and equal nothing."""
    with pytest.raises(MixError, match=r"a\.weight: .* is not a finite number"):
        AdapterMix.of({ref("a"): weight})
    with pytest.raises(MixError, match=r"a\.\*\.q: .* is not a finite number"):
        AdapterMix.of({ref("a"): 1.0}, {ref("a"): {"*.q": weight}})


NO_FLOATS: dict[str, object] = {
    "huge": 10**400,
    "beyond printing": -(10**5000),
    "text": "1",
    "none": None,
    "list": [1.0],
    "tensor of two": torch.ones(2),
}
HALVES = [Fraction(1, 2), np.float32(0.5), np.float64(0.5), torch.tensor(0.5)]


@pytest.mark.parametrize("weight", NO_FLOATS.values(), ids=NO_FLOATS)
def test_weights_that_are_no_float_are_refused_by_name(weight: Any) -> None:
    """A library's caller catches LokrError, and must hear which weight is wrong."""
    with pytest.raises(MixError, match=r"^a\.weight: .* (is not a finite|number is too large)"):
        AdapterMix.of({ref("a"): weight})
    with pytest.raises(MixError, match=r"^a\.\*\.q: .* (is not a finite|number is too large)"):
        MixPart(ref=ref("a"), weight=1.0, module_weights=(("*.q", weight),))


@pytest.mark.parametrize("half", HALVES, ids=lambda half: type(half).__name__)
def test_weights_of_any_kind_of_number_are_one(half: Any) -> None:
    """NumPy writes its numbers in another way, which a name must not depend on."""
    part = MixPart(ref=ref("a"), weight=half, module_weights=(("*.q", half),))

    assert part == MixPart(ref=ref("a"), weight=0.5, module_weights=(("*.q", 0.5),))
    assert type(part.weight) is float
    assert AdapterMix((part,)).name.startswith("a*0.5@")


def test_an_adapter_may_be_named_once() -> None:
    """Two versions of one adapter, or one adapter twice, is a mistake of the caller."""
    with pytest.raises(MixError, match="a: the adapter is named twice"):
        AdapterMix.of({ref("a", "1"): 1.0, ref("a", "2"): 1.0})
    with pytest.raises(MixError, match="named twice"):
        AdapterMix((MixPart(ref=ref("a"), weight=1.0), MixPart(ref=ref("a"), weight=2.0)))


def test_a_mix_has_at_most_eight_parts_unless_told() -> None:
    """The bound keeps a request from taking a whole batch's time."""
    nine = {ref(letter): 1.0 for letter in "abcdefghi"}

    assert len(AdapterMix.of({ref(letter): 1.0 for letter in "abcdefgh"}).parts) == 8
    assert len(AdapterMix.of(nine, max_parts=9).parts) == 9
    with pytest.raises(MixError, match="9 parts are more than the limit of 8"):
        AdapterMix.of(nine)


def test_module_weights_of_an_absent_adapter_are_refused() -> None:
    """They would be passed over without a word."""
    with pytest.raises(MixError, match="b: has module weights but is not in the mix"):
        AdapterMix.of({ref("a"): 1.0}, {ref("b"): {"*": 1.0}})


def test_an_adapter_and_its_ref_are_one_key() -> None:
    """Weights given under both would drop one of the two without a word."""
    adapter = random_adapter(attach(make_base()).spec, "a")

    assert AdapterMix.of({adapter: 0.5}) == AdapterMix.of({adapter.ref: 0.5})
    both: dict[Adapter | AdapterRef, float] = {adapter: 1.0, adapter.ref: 2.0}
    with pytest.raises(MixError, match="a: the adapter is named twice"):
        AdapterMix.of(both)
    patterns: dict[Adapter | AdapterRef, dict[str, float]] = {
        adapter: {"first": 1.0},
        adapter.ref: {"second": 1.0},
    }
    with pytest.raises(MixError, match="a: has module weights twice"):
        AdapterMix.of({adapter: 1.0}, patterns)


@pytest.mark.parametrize("adapter_id", ["a", "team/style-1.2", "A_b/9", "x" * 128])
def test_good_ids_are_returned(adapter_id: str) -> None:
    """Ids are paths of segments."""
    assert check_adapter_id(adapter_id) == adapter_id


@pytest.mark.parametrize("adapter_id", ["", "..", "a//b", "/a", "a/", "a/../b", "a\n", "x" * 129])
def test_bad_ids_are_refused(adapter_id: str) -> None:
    """An id never leads out of the store."""
    with pytest.raises(MixError, match="is no adapter id"):
        check_adapter_id(adapter_id)

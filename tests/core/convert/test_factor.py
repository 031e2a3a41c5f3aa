"""PEFT's factor shapes, held against PEFT's own function."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lokr.layer import factorization as peft_factorization

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.factor import KroneckerShape, decompose_factor, factorization


def kronecker(path: str, o1: int, i1: int, o2: int, i2: int) -> KroneckerShape:
    """Return the shape of two full factors."""
    return KroneckerShape(
        path=path, o1=o1, i1=i1, o2=o2, i2=i2, w1_rank=None, w2_rank=None, core=None
    )


@given(whole=st.integers(1, 600), factor=st.integers(-1, 700).filter(bool))
def test_factorization_is_that_of_peft(whole: int, factor: int) -> None:
    """A file is written for what PEFT will make of its configuration."""
    assert factorization(whole, factor) == peft_factorization(whole, factor)[0]


@given(
    sizes=st.lists(st.integers(1, 40).map(lambda n: 8 * n), min_size=2, max_size=6),
    factor=st.integers(1, 64),
)
def test_a_factor_is_found_where_there_is_one(sizes: list[int], factor: int) -> None:
    """Any decompose_factor will do that gives all shapes."""
    shapes = []
    for whole_out, whole_in in pairwise(sizes):
        (o1, o2), (i1, i2) = (peft_factorization(n, factor) for n in (whole_out, whole_in))
        shapes.append(kronecker("m", o1, i1, o2, i2))
    found = decompose_factor(shapes)

    for shape in shapes:
        assert peft_factorization(shape.o1 * shape.o2, found)[0] == shape.o1
        assert peft_factorization(shape.i1 * shape.i2, found)[0] == shape.i1


def test_shapes_of_two_factors_are_refused() -> None:
    """SimpleTuner gives attention and feed-forward factors of their own; PEFT has one."""
    shapes = [kronecker("attention", 2, 2, 32, 32), kronecker("feed_forward", 4, 4, 16, 16)]
    with pytest.raises(ConversionError, match="decompose_factor") as caught:
        decompose_factor(shapes)

    assert caught.value.module in ("attention", "feed_forward")

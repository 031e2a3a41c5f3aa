"""Places: what is cut and joined again is what it was."""

from hypothesis import given
from hypothesis import strategies as st

from lokr_core.formats.places import Place, Span, cut, joined, overlap, size, swapped, whole

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def place_of(sizes: list[int]) -> Place:
    """Return a place over modules of these sizes."""
    return joined(whole(f"module{index}", outputs) for index, outputs in enumerate(sizes))


@given(sizes=SIZES, pieces=SIZES)
def test_pieces_of_a_place_join_to_the_place(sizes: list[int], pieces: list[int]) -> None:
    """No output may be lost or doubled, wherever the cuts fall."""
    place = place_of(sizes)
    shares = [*pieces, size(place) - sum(pieces)]
    if shares[-1] < 0:
        shares = [size(place)]

    parts = cut(place, shares)

    assert [size(part) for part in parts] == shares
    assert joined(parts) == place
    assert all(
        overlap(one, other) is None for index, one in enumerate(parts) for other in parts[:index]
    )


@given(sizes=SIZES)
def test_halves_that_change_places_twice_are_where_they_were(sizes: list[int]) -> None:
    """Both code bases swap the same two halves, so the map is its own reverse."""
    place = joined([place_of(sizes), place_of(sizes)])

    assert swapped(swapped(place)) == place
    assert size(swapped(place)) == size(place)


def test_swapped_halves_are_two_spans_of_one_module() -> None:
    """The file's first half goes to the second half of the base."""
    assert swapped(whole("norm", 8)) == (
        Span(path="norm", start=4, stop=8),
        Span(path="norm", start=0, stop=4),
    )


def test_places_that_share_an_output_overlap() -> None:
    """One output is enough, in any of the spans."""
    one = (*whole("a", 4), Span(path="b", start=0, stop=3))

    assert overlap(one, (Span(path="b", start=2, stop=5),)) == "b"
    assert overlap(one, (Span(path="b", start=3, stop=5),)) is None
    assert overlap(one, whole("c", 4)) is None

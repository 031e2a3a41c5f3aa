"""Counter-based randomness."""

from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.text.seeds import derive_seed, uniform

SEEDS = st.integers(0, 2**64 - 1)


@given(seed=SEEDS, index=st.integers(0, 63))
def test_derived_seed_is_an_unsigned_64_bit_integer(seed: int, index: int) -> None:
    """It is reported on the wire and can be sent again as a seed."""
    assert 0 <= derive_seed(seed, index) < 2**64


@given(seed=SEEDS)
def test_first_sequence_keeps_the_seed_of_the_request(seed: int) -> None:
    """So n = 1 and the first of n give the same text."""
    assert derive_seed(seed, 0) == seed


def test_sequences_of_a_request_draw_apart() -> None:
    """Equal seeds, or neighbours, would make the n sequences repeat each other."""
    seeds = {derive_seed(seed, index) for seed in range(50) for index in range(64)}

    assert len(seeds) == 50 * 64


@given(seed=SEEDS, position=st.integers(0, 2**40))
def test_draw_lies_in_the_half_open_unit_interval(seed: int, position: int) -> None:
    """A draw of 1 would lie behind the last token."""
    assert 0 <= uniform(seed, position) < 1


def test_draws_stay_what_they_are() -> None:
    """A seed that a client noted must give the same text after an upgrade."""
    assert uniform(0, 0) == 0.41693913115950165
    assert derive_seed(0, 1) == 7663379897489042338


def test_draws_are_uniform_over_positions_and_over_seeds() -> None:
    """Both are counters that go up by one; a weak mix of the two would show as a pattern."""
    by_position = [uniform(7, position) for position in range(20_000)]
    by_seed = [uniform(seed, 7) for seed in range(20_000)]

    for draws in (by_position, by_seed):
        counts = [0] * 20
        for draw in draws:
            counts[int(draw * 20)] += 1
        assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts)

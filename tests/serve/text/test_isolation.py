"""Isolation finds the rows that cannot run in a logarithmic number of steps, and frees the rest."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.text.isolation import Isolation


def play(num_rows: int, culprits: set[int]) -> tuple[list[int], int]:
    """Run rounds until nothing is held back; return who was found and how many steps failed."""
    isolation: Isolation[int] = Isolation()
    running: list[int] = list(range(num_rows))
    found: list[int] = []
    num_failed = 0
    for _ in range(20 * num_rows + 20):
        if culprits & set(running):
            num_failed += 1
            culprit = isolation.fail(running, running)
            if culprit is not None:
                found.append(culprit)
                isolation.discard(culprit)
        elif isolation.testing:
            for row in running:
                isolation.clear(row)
        else:
            break
        running = isolation.next_rows()
    assert not isolation.is_active
    assert sorted([*running, *found]) == list(range(num_rows)), "every row goes on or has failed"
    return found, num_failed


@given(num_rows=st.integers(1, 40), data=st.data())
def test_exactly_the_culprits_are_found(num_rows: int, data: st.DataObject) -> None:
    """Only a request that cannot run alone fails; nobody else may go down with it."""
    culprits = data.draw(st.sets(st.integers(0, num_rows - 1)))

    found, _ = play(num_rows, culprits)

    assert set(found) == culprits
    assert len(found) == len(culprits)


def test_one_culprit_costs_a_logarithm_of_failed_steps() -> None:
    """A poison row among many must not cost a failed step for each of the others."""
    _, num_failed = play(64, {41})

    assert num_failed <= 7  # the first, and one for each halving


def test_a_fault_that_does_not_come_back_costs_nobody() -> None:
    """A passing fault (memory, say) clears every suspect after one test of each half."""
    isolation: Isolation[str] = Isolation()

    assert isolation.fail(["a", "b", "c"], ["a", "b", "c", "d"]) is None
    first = isolation.next_rows()
    for row in first:
        isolation.clear(row)
    second = isolation.next_rows()
    for row in second:
        isolation.clear(row)

    assert first == ["a"]
    assert second == ["b", "c"]
    assert sorted(isolation.next_rows()) == ["a", "b", "c", "d"]
    assert not isolation.is_active


def test_rows_that_were_not_in_the_failed_step_are_not_suspects() -> None:
    """A row that waited for a place in the step has done nothing wrong; it waits untested."""
    isolation: Isolation[str] = Isolation()
    isolation.fail(["a", "b"], ["a", "b", "c"])

    tested = [isolation.next_rows(), isolation.next_rows()]

    assert tested == [["a"], ["b"]]


def groups(isolation: Isolation[str]) -> Iterable[list[str]]:
    """Yield what runs next until nothing is held back."""
    while isolation.is_active:
        rows = isolation.next_rows()
        for row in list(isolation.testing):
            isolation.clear(row)
        yield rows


def test_a_suspect_that_ends_meanwhile_is_not_run_again() -> None:
    """A cancelled request must not come back because a test held its row."""
    isolation: Isolation[str] = Isolation()
    isolation.fail(["a", "b", "c", "d"], ["a", "b", "c", "d", "e"])
    for row in ("a", "b", "e"):
        isolation.discard(row)

    runs = list(groups(isolation))

    assert runs == [["c", "d"], ["c", "d"]]


def test_a_row_is_blamed_only_when_a_test_of_its_own_fails() -> None:
    """The first failure of a row that happened to run alone may have been anything."""
    isolation: Isolation[str] = Isolation()
    first = isolation.fail(["a"], ["a"])
    isolation.next_rows()

    second = isolation.fail(["a"], ["a"])

    assert (first, second) == (None, "a")

"""The pool knows which adapters are here, and who uses them."""

import pytest

from lokr_core import AdapterInUseError, AdapterMix, AdapterNotAddedError, attach
from lokr_core.mix import module_weight
from lokr_core.pool import AdapterPool
from tests.core.factors import make_base, random_adapter

ADAPTER = random_adapter(attach(make_base()).spec, "a")
MIX = AdapterMix.of({ADAPTER: 0.5}, {ADAPTER: {"s*": 0.25}})


def filled() -> AdapterPool:
    """Return a pool that holds the adapter."""
    pool = AdapterPool()
    pool.add(ADAPTER)
    return pool


def test_adding_twice_changes_nothing() -> None:
    """Two requests may bring the same adapter."""
    pool = filled()
    pool.add(ADAPTER)
    pool.remove(ADAPTER.ref)

    assert ADAPTER.ref not in pool
    assert pool.num_removals == 1


def test_what_is_held_cannot_be_removed() -> None:
    """Each hold counts."""
    pool = filled()

    with pool.hold([MIX]):
        with pool.hold([MIX, MIX]), pytest.raises(AdapterInUseError, match="'a' is in use"):
            pool.remove(ADAPTER.ref)
        with pytest.raises(AdapterInUseError):
            pool.remove(ADAPTER.ref)
    pool.remove(ADAPTER.ref)

    assert ADAPTER.ref not in pool


def test_a_hold_is_given_back_when_its_body_raises() -> None:
    """A failed forward keeps nothing."""
    pool = filled()

    with pytest.raises(KeyError), pool.hold([MIX]):
        raise KeyError
    pool.remove(ADAPTER.ref)

    assert ADAPTER.ref not in pool


def test_what_is_not_here_is_named() -> None:
    """The message says which version is meant."""
    pool = AdapterPool()

    with pytest.raises(AdapterNotAddedError, match=f"'a' version {ADAPTER.ref.version}"):
        pool.remove(ADAPTER.ref)
    with pytest.raises(AdapterNotAddedError, match="was not added"), pool.hold([MIX]):
        pass
    with pytest.raises(AdapterNotAddedError, match="was not added"):
        pool.check(MIX)


def test_a_pattern_replaces_the_parts_weight_where_it_matches() -> None:
    """The glob is over the whole path and tells cases apart."""
    (part,) = MIX.parts

    assert module_weight(part, "second") == 0.25
    assert module_weight(part, "first") == 0.5
    assert module_weight(part, "Second") == 0.5

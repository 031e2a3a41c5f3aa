"""The merge cache is bounded in bytes, and never drops what is in use."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lokr_core import AdapterMix, AdapterRef, MergeBudgetError, MergeCache, MergedMix, MergeError


def mix_of(*names: str) -> AdapterMix:
    """Return a mix of adapters by name."""
    return AdapterMix.of({AdapterRef(adapter_id=n, version="0" * 16): 1.0 for n in names})


def merged(num_bytes: int = 40) -> MergedMix:
    """Return merged weights of a size."""
    return MergedMix(weights={"m": torch.zeros(num_bytes, dtype=torch.uint8)}, rounding_loss=0.0)


def put_idle(cache: MergeCache, *names: str) -> None:
    """Put entries of 40 bytes that nobody leases."""
    for name in names:
        cache.put(mix_of(name), merged())
        cache.release(mix_of(name))


def test_what_is_put_is_found_and_leased() -> None:
    """The caller that merged goes on to use it."""
    cache, entry = MergeCache(100), merged()

    cache.put(mix_of("a"), entry)

    assert mix_of("a") in cache
    assert cache.get(mix_of("a")) is entry
    assert cache.num_bytes == 40
    assert not cache.acquire(mix_of("b"))


def test_the_least_recently_used_goes_first() -> None:
    """A lease counts as a use."""
    cache = MergeCache(100)
    put_idle(cache, "a", "b")
    assert cache.acquire(mix_of("a"))
    cache.release(mix_of("a"))

    put_idle(cache, "c")

    assert [mix_of(name) in cache for name in "abc"] == [True, False, True]
    assert cache.num_bytes == 80
    assert cache.num_drops == 1


def test_leased_entries_stay_and_the_rest_makes_room() -> None:
    """A forward that runs keeps its weights, even if they are the oldest."""
    cache = MergeCache(100)
    cache.put(mix_of("a"), merged())
    put_idle(cache, "b")

    cache.put(mix_of("c"), merged())

    assert [mix_of(name) in cache for name in "abc"] == [True, False, True]
    with pytest.raises(MergeBudgetError, match=r"'d' takes 40 bytes, but 80 of .* 100 bytes"):
        cache.put(mix_of("d"), merged())
    assert [mix_of(name) in cache for name in "acd"] == [True, True, False]


def test_what_can_never_fit_is_refused_and_evicts_nothing() -> None:
    """A refused merge leaves no trace."""
    cache = MergeCache(100)
    put_idle(cache, "a")

    with pytest.raises(MergeBudgetError, match="serve it unmerged"):
        cache.put(mix_of("b"), merged(101))

    assert mix_of("a") in cache


def test_putting_twice_keeps_the_first_and_leases_both() -> None:
    """Two threads may have merged the same mix; each gives back its own lease."""
    cache, first = MergeCache(100), merged()
    cache.put(mix_of("a"), first)
    cache.put(mix_of("a"), merged())
    cache.release(mix_of("a"))

    cache.discard_adapter(AdapterRef(adapter_id="a", version="0" * 16))

    assert cache.get(mix_of("a")) is first
    assert cache.num_bytes == 40


def test_discarding_an_adapter_drops_every_idle_mix_of_it() -> None:
    """Another version of it, and mixes without it, stay."""
    cache = MergeCache(1000)
    for mix in (mix_of("a"), mix_of("a", "b"), mix_of("b")):
        cache.put(mix, merged())
        cache.release(mix)

    cache.discard_adapter(AdapterRef(adapter_id="a", version="1"))
    assert cache.num_bytes == 120
    cache.discard_adapter(AdapterRef(adapter_id="a", version="0" * 16))

    assert cache.num_bytes == 40
    assert mix_of("b") in cache


def test_what_is_idle_can_be_given_back_at_once() -> None:
    """When memory runs out, what is kept to save time goes before any request does."""
    cache = MergeCache(1000)
    put_idle(cache, "a", "b")
    cache.put(mix_of("held"), merged())

    assert cache.discard_idle() == 80
    assert cache.num_bytes == 40
    assert mix_of("held") in cache
    assert cache.discard_idle() == 0


def test_reading_without_a_lease_is_refused_by_name() -> None:
    """An entry that is not there cannot be applied."""
    with pytest.raises(MergeError, match="mix 'a' is not merged"):
        MergeCache(100).get(mix_of("a"))


def test_a_lease_is_given_back_once() -> None:
    """A second release would free what another still uses."""
    cache = MergeCache(100)
    put_idle(cache, "a")

    with pytest.raises(AssertionError, match="a was not leased"):
        cache.release(mix_of("a"))


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["put", "acquire", "release", "drop"]))
    )
)
def test_the_bound_holds_and_leases_hold(steps: list[tuple[str, str]]) -> None:
    """Whatever is done, bytes stay within the bound and leased entries stay in the cache."""
    cache, leases = MergeCache(100), dict.fromkeys("abcd", 0)
    for name, action in steps:
        mix = mix_of(name)
        if action == "acquire":
            leases[name] += cache.acquire(mix)
        elif action == "put":
            try:
                cache.put(mix, merged())
                leases[name] += 1
            except MergeBudgetError:
                assert sum(40 for count in leases.values() if count) + 40 > 100
        elif action == "release" and leases[name]:
            cache.release(mix)
            leases[name] -= 1
        elif action == "drop":
            cache.discard_adapter(mix.parts[0].ref)

        assert cache.num_bytes == 40 * sum(mix_of(n) in cache for n in "abcd") <= 100
        assert all(mix_of(n) in cache for n, count in leases.items() if count)

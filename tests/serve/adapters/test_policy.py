"""The choice of auto: counted cost against recent traffic."""

import pytest

from lokr_core import AdapterMix, AdapterRef
from lokr_core.cost import MixCost
from lokr_serve.adapters.policy import (
    CPU_MACS_PER_BYTE,
    HALF_LIFE_SECONDS,
    Traffic,
    TrafficCounter,
    Workload,
    is_worth_merging,
    row_gain,
)

# A Llama of 100 M parameters in float32 under a LoKr of factor 8 and rank 8.
BASE_MACS = 100_000_000
LIGHT = MixCost(
    base_macs=BASE_MACS,
    unmerged_macs=BASE_MACS // 200,
    merge_macs=BASE_MACS,
    merged_bytes=4 * BASE_MACS,
)
# The same base under a LoKr of factor 4 with a full w2.
HEAVY = MixCost(
    base_macs=BASE_MACS,
    unmerged_macs=BASE_MACS // 4,
    merge_macs=BASE_MACS,
    merged_bytes=4 * BASE_MACS,
)


def traffic(recent: float, total: float | None = None, running: int = 16) -> Traffic:
    """Return traffic of which ``recent`` of ``total`` requests are for the mix."""
    return Traffic(num_recent=recent, num_recent_total=total or recent, num_running=running)


def mix(adapter_id: str) -> AdapterMix:
    """Return a mix of one adapter."""
    return AdapterMix.of({AdapterRef(adapter_id=adapter_id, version="0" * 16): 1.0})


def is_merged(cost: MixCost, load: Traffic) -> bool:
    """Decide with the figures of a CPU."""
    return is_worth_merging(cost, load, CPU_MACS_PER_BYTE)


def test_a_single_request_is_not_worth_a_merge() -> None:
    """The merge would cost more than the whole request."""
    assert not is_merged(LIGHT, traffic(1, running=1))


def test_a_mix_that_has_the_server_to_itself_is_merged() -> None:
    """With no other rows in the step, merged weights cost no extra read."""
    assert is_merged(LIGHT, traffic(100))


def test_a_mix_among_others_stays_unmerged() -> None:
    """Its weights would be read beside the base's in every step, for a delta that is cheap."""
    assert row_gain(LIGHT, traffic(100, total=400), CPU_MACS_PER_BYTE) < 0
    assert not is_merged(LIGHT, traffic(100, total=400))


def test_heavy_factors_are_merged_sooner_than_light_ones() -> None:
    """The adapter's shapes decide, not its popularity alone."""
    busy = traffic(800, total=1000, running=64)

    assert is_merged(HEAVY, busy)
    assert not is_merged(LIGHT, busy)


# Thirty steps of a 256 x 256 image by Stable Diffusion 1.5, with guidance.
IMAGE = Workload(rows_per_step=2 * 99, num_steps=30)


def test_an_image_with_heavy_factors_is_merged_even_among_others() -> None:
    """A quarter more in each of many rows outweighs one more read of the weights, and a merge."""
    busy = Traffic(num_recent=1, num_recent_total=8, num_running=8, workload=IMAGE)

    assert is_merged(HEAVY, busy)


def test_an_image_with_light_factors_stays_unmerged_among_others() -> None:
    """A read for each mix in a step is more than what low-rank factors cost."""
    busy = Traffic(num_recent=10, num_recent_total=80, num_running=8, workload=IMAGE)

    assert row_gain(LIGHT, busy, CPU_MACS_PER_BYTE) < 0


def test_light_factors_are_merged_once_images_alone_on_the_server_win_it_back() -> None:
    """One image costs less than the merge; its like in a moment costs more, a text still less."""
    first = Traffic(num_recent=1, num_recent_total=1, num_running=1, workload=IMAGE)
    second = Traffic(num_recent=2, num_recent_total=2, num_running=1, workload=IMAGE)

    assert not is_merged(LIGHT, first)
    assert is_merged(LIGHT, second)
    assert not is_merged(LIGHT, traffic(2, running=1))


def test_a_request_alone_pays_no_extra_read() -> None:
    """Whatever the past traffic, one request in flight has no other rows beside it."""
    assert row_gain(LIGHT, traffic(1, total=100, running=1), CPU_MACS_PER_BYTE) > 0


def test_traffic_halves_with_its_half_life() -> None:
    """What was busy an hour ago must not keep a merge alive."""
    counter = TrafficCounter()
    counter.count(mix("a"), now=0.0, num_running=1)

    later = counter.count(mix("a"), now=HALF_LIFE_SECONDS, num_running=3)

    assert later.num_recent == pytest.approx(1.5)
    assert later.num_recent_total == pytest.approx(1.5)
    assert later.num_running == 3


def test_traffic_is_counted_by_mix() -> None:
    """The share of a mix is what tells whether its steps hold other rows."""
    counter = TrafficCounter()
    counter.count(mix("a"), now=0.0, num_running=1)
    counter.count(AdapterMix(), now=0.0, num_running=1)

    third = counter.count(mix("a"), now=0.0, num_running=1)

    assert (third.num_recent, third.num_recent_total) == (2, 3)


def test_traffic_forgets_the_mix_unseen_for_longest() -> None:
    """Callers choose the weights, so the number of mixes has no bound of its own."""
    counter = TrafficCounter(max_mixes=2)
    for name in ("a", "b", "a", "c"):
        counter.count(mix(name), now=0.0, num_running=1)

    kept = counter.count(mix("a"), now=0.0, num_running=1)
    forgotten = counter.count(mix("b"), now=0.0, num_running=1)

    assert kept.num_recent == 3
    assert forgotten.num_recent == 1

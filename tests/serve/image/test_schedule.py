"""Schedules: an adapter's weights in the denoiser, step by step."""

from lokr_core import AdapterMix, AdapterRef
from lokr_serve.image.schedule import ScheduledMix
from lokr_serve.types import ScheduledFactor, WeightSchedule

INK = AdapterRef(adapter_id="ink", version="0")
OIL = AdapterRef(adapter_id="oil", version="0")
MIX = AdapterMix.of({INK: 0.5, OIL: 2.0}, module_weights={INK: {"unet.*": 3.0}})


def schedule(adapter_id: str, **factors: float) -> WeightSchedule:
    """Return a schedule with points such as ``step_2=0.5``."""
    points = [(int(name.removeprefix("step_")), factor) for name, factor in factors.items()]
    return WeightSchedule(
        adapter_id=adapter_id,
        points=tuple(ScheduledFactor(step=step, factor=factor) for step, factor in points),
    )


def test_a_request_without_schedules_keeps_its_mix() -> None:
    """One object for all steps, so that what is planned for it is found again."""
    scheduled = ScheduledMix(MIX, ())

    assert not scheduled.is_scheduled
    assert scheduled.at(0) is MIX
    assert scheduled.at(99) is MIX


def test_factors_scale_weights_and_module_weights_alike() -> None:
    """Of the adapter that is named alone; a factor of 0 leaves it out, patterns and all."""
    scheduled = ScheduledMix(MIX, [schedule("ink", step_1=0.5, step_3=0.0)])

    assert scheduled.is_scheduled
    assert scheduled.at(0) is MIX
    assert scheduled.at(2) == AdapterMix.of(
        {INK: 0.25, OIL: 2.0}, module_weights={INK: {"unet.*": 1.5}}
    )
    assert scheduled.at(3) == AdapterMix.of({OIL: 2.0})


def test_equal_factors_give_the_same_mix() -> None:
    """A ramp of many points must not make a mix for each step that has one already."""
    scheduled = ScheduledMix(MIX, [schedule("ink", step_0=0.5, step_2=0.7, step_4=0.5)])

    assert scheduled.at(1) is scheduled.at(5)
    assert scheduled.at(1) is not scheduled.at(2)


def test_a_schedule_of_an_adapter_that_does_nothing_is_no_schedule() -> None:
    """A part of weight 0 is not in the mix, and so neither is what scales it."""
    scheduled = ScheduledMix(AdapterMix.of({OIL: 1.0}), [schedule("ink", step_0=0.5)])

    assert not scheduled.is_scheduled

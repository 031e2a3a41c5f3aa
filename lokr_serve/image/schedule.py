"""The denoiser's mix at each scheduler step, where a request schedules its weights."""

from collections.abc import Sequence

from lokr_core import AdapterMix, MixPart
from lokr_serve.types import WeightSchedule


class ScheduledMix:
    """A mix whose parts' weights change over the scheduler's steps.

    Equal factors give the same object, so that what is known of a mix is found again.
    """

    def __init__(self, mix: AdapterMix, schedules: Sequence[WeightSchedule]) -> None:
        self._mix = mix
        by_id = {schedule.adapter_id: schedule for schedule in schedules}
        self._schedules = tuple(by_id.get(part.ref.adapter_id) for part in mix.parts)
        self._known: dict[tuple[float, ...], AdapterMix] = {(1.0,) * len(mix.parts): mix}

    @property
    def is_scheduled(self) -> bool:
        """Whether any part has a schedule."""
        return any(schedule is not None for schedule in self._schedules)

    def at(self, step: int) -> AdapterMix:
        """Return the mix at a scheduler step, counted from 0."""
        factors = tuple(
            1.0 if schedule is None else schedule.factor(step) for schedule in self._schedules
        )
        if factors not in self._known:
            parts = zip(self._mix.parts, factors, strict=True)
            scaled = (_scaled(part, factor) for part, factor in parts if factor != 0)
            self._known[factors] = AdapterMix(tuple(scaled))
        return self._known[factors]


def _scaled(part: MixPart, factor: float) -> MixPart:
    return MixPart(
        ref=part.ref,
        weight=part.weight * factor,
        module_weights=tuple((pattern, w * factor) for pattern, w in part.module_weights),
    )

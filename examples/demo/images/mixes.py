"""The prompts and the mixes of the contact sheet."""

from dataclasses import dataclass

from lokr_serve.types import AdapterWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleMix:
    """So much of the one adapter and so much of the other."""

    night: float = 0.0
    winter: float = 0.0

    @property
    def label(self) -> str:
        """What stands above its pictures."""
        parts = [
            name if weight == 1 else f"{name}*{weight:g}"
            for name, weight in (("night", self.night), ("winter", self.winter))
            if weight
        ]
        return " + ".join(parts) or "base model"

    @property
    def adapters(self) -> tuple[AdapterWeight, ...]:
        """The mix, as a request names it."""
        return tuple(
            AdapterWeight(adapter_id=name, weight=weight)
            for name, weight in (("night", self.night), ("winter", self.winter))
            if weight
        )


PROMPTS = ("a red house in a meadow", "a pink tree in the desert", "a yellow boat at sea")
BASE = StyleMix()
NIGHT, WINTER = StyleMix(night=1), StyleMix(winter=1)
HALVES, BOTH = StyleMix(night=0.5, winter=0.5), StyleMix(night=0.7, winter=0.7)
# From the one to the other, in five weights.
FADE = (
    NIGHT,
    StyleMix(night=0.75, winter=0.25),
    HALVES,
    StyleMix(night=0.25, winter=0.75),
    WINTER,
)
SHOWN = (BASE, NIGHT, WINTER, HALVES, BOTH)
EVERY_MIX = tuple(dict.fromkeys((*SHOWN, *FADE)))

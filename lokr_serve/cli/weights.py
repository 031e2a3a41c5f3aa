"""How a command line names adapters, their weights, and how these change over the steps."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from lokr_serve.errors import SettingsError
from lokr_serve.types import AdapterWeight, ScheduledFactor, WeightSchedule

AdapterFlag = Annotated[
    list[str] | None,
    Option("--adapter", metavar="ID[*WEIGHT]", help="An adapter of the mix; repeatable."),
]
ModuleWeightFlag = Annotated[
    list[str] | None,
    Option(
        "--module-weight",
        metavar="ID@PATTERN=WEIGHT",
        help="Another weight of an adapter in the modules that a pattern matches; repeatable.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A name, such as an adapter's id or path, and its weight in a mix."""

    name: str
    weight: float


def parse_weighted(text: str) -> Weighted:
    """Read ``NAME*WEIGHT`` or ``NAME``, whose weight is 1.

    Raises:
        SettingsError: The weight is not a finite number.
    """
    name, star, weight_text = text.rpartition("*")
    if not star:
        return Weighted(name=text, weight=1.0)
    weight = _number(weight_text)
    if not name or weight is None:
        raise SettingsError(f"{text!r} is not NAME*WEIGHT with a finite number")
    return Weighted(name=name, weight=weight)


def parse_mix(
    adapters: Sequence[str] | None, module_weights: Sequence[str] | None
) -> tuple[AdapterWeight, ...]:
    """Read the parts of a mix: ``ID*WEIGHT`` each, and ``ID@PATTERN=WEIGHT`` for some of them.

    Raises:
        SettingsError: A weight is not a finite number, or a module weight is of no adapter.
    """
    by_adapter: dict[str, dict[str, float]] = defaultdict(dict)
    for text in module_weights or ():
        adapter_id, _, rest = text.partition("@")
        pattern, equals, weight_text = rest.rpartition("=")
        weight = _number(weight_text)
        if not (adapter_id and pattern and equals) or weight is None:
            raise SettingsError(f"{text!r} is not ID@PATTERN=WEIGHT with a finite number")
        if pattern in by_adapter[adapter_id]:
            raise SettingsError(f"--module-weight: {adapter_id}@{pattern} is given twice")
        by_adapter[adapter_id][pattern] = weight
    parts = tuple(
        AdapterWeight(
            adapter_id=item.name,
            weight=item.weight,
            module_weights=tuple(by_adapter.pop(item.name, {}).items()),
        )
        for item in map(parse_weighted, adapters or ())
    )
    if by_adapter:
        name = next(iter(by_adapter))
        raise SettingsError(f"--module-weight: {name!r} is not one of the adapters; add --adapter")
    return parts


def parse_schedule(text: str) -> WeightSchedule:
    """Read ``ID@STEP=FACTOR,STEP=FACTOR...``.

    From each step on, counted from 0, the weights of the adapter are multiplied by its factor;
    before the first of the steps, by 1.

    Raises:
        SettingsError: It is not of that form.
        InvalidRequestError: The steps do not increase.
    """
    adapter_id, _, points_text = text.partition("@")
    points = [_point(point_text) for point_text in points_text.split(",")]
    known = [point for point in points if point is not None]
    if not adapter_id or len(known) < len(points):
        raise SettingsError(f"{text!r} is not ID@STEP=FACTOR,... with steps from 0")
    return WeightSchedule(adapter_id=adapter_id, points=tuple(known))


def _point(text: str) -> ScheduledFactor | None:
    step_text, equals, factor_text = text.partition("=")
    factor = _number(factor_text)
    if not equals or not step_text.strip().isdecimal() or factor is None:
        return None
    return ScheduledFactor(step=int(step_text), factor=factor)


def _number(text: str) -> float | None:
    """Return a finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

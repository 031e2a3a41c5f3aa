"""Mixes and schedules on the command line."""

import pytest

from lokr_serve.cli.weights import parse_mix, parse_schedule
from lokr_serve.errors import InvalidRequestError, SettingsError
from lokr_serve.types import AdapterWeight, ScheduledFactor, WeightSchedule


def test_a_mix_has_weights_for_modules() -> None:
    """A component or a block may have a weight of its own."""
    mix = parse_mix(
        ["a/poet*0.7", "pirate"],
        ["a/poet@unet.*=0.2", "a/poet@text_encoder.*=-1"],
    )

    assert mix == (
        AdapterWeight(
            adapter_id="a/poet",
            weight=0.7,
            module_weights=(("unet.*", 0.2), ("text_encoder.*", -1.0)),
        ),
        AdapterWeight(adapter_id="pirate"),
    )


def test_no_adapter_is_the_base_model() -> None:
    """Flags that are not given are None."""
    assert parse_mix(None, None) == ()


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (["poet"], "ID@PATTERN=WEIGHT"),
        (["poet@unet.*"], "ID@PATTERN=WEIGHT"),
        (["poet@=1"], "ID@PATTERN=WEIGHT"),
        (["@unet.*=1"], "ID@PATTERN=WEIGHT"),
        (["poet@unet.*=much"], "ID@PATTERN=WEIGHT"),
        (["poet@unet.*=inf"], "ID@PATTERN=WEIGHT"),
        (["poet@unet.*=1", "poet@unet.*=2"], "given twice"),
        (["pirate@unet.*=1"], "'pirate' is not one of the adapters"),
    ],
)
def test_a_module_weight_that_means_nothing_is_refused(weights: list[str], problem: str) -> None:
    """To pass it over would make another picture than was asked for."""
    with pytest.raises(SettingsError, match=problem):
        parse_mix(["poet"], weights)


def test_a_schedule_has_a_factor_from_each_step_on() -> None:
    """It is read as it is meant: step, then factor."""
    schedule = parse_schedule("a/poet@0=0,5=0.5,10=1")

    assert schedule == WeightSchedule(
        adapter_id="a/poet",
        points=(
            ScheduledFactor(step=0, factor=0),
            ScheduledFactor(step=5, factor=0.5),
            ScheduledFactor(step=10, factor=1),
        ),
    )
    assert [schedule.factor(step) for step in (0, 4, 5, 12)] == [0, 0, 0.5, 1]


@pytest.mark.parametrize(
    "text", ["poet", "poet@", "@0=1", "poet@1", "poet@x=1", "poet@-1=1", "poet@1=x", "poet@1=1,"]
)
def test_a_schedule_of_another_form_is_refused(text: str) -> None:
    """A point that is passed over changes every step after it."""
    with pytest.raises(SettingsError, match="ID@STEP=FACTOR"):
        parse_schedule(text)


def test_steps_that_go_back_are_refused() -> None:
    """Which of two factors holds at a step must be plain."""
    with pytest.raises(InvalidRequestError, match="increase"):
        parse_schedule("poet@5=1,5=0")

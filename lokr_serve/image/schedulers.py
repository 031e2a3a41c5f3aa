"""Schedulers: which of diffusers' a family's pipelines run with, and a fresh one for a request.

All of them were run: those that need a package of their own, that fail, or that draw from the
process-wide random numbers, which would make an image depend on the others, are left out.
"""

import inspect
from dataclasses import dataclass
from typing import cast

import diffusers
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from lokr_serve.errors import InvalidRequestError, ModelError

FIELD = "params.scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedulers:
    """The classes that a family's pipelines run with."""

    text_to_image: frozenset[str]
    image_to_image: frozenset[str]


_OF_NOISE = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
_EULER = frozenset({"FlowMatchEulerDiscreteScheduler"})
_HEUN = frozenset({"FlowMatchHeunDiscreteScheduler"})  # cannot be given sigmas
_UNIPC = frozenset({"UniPCMultistepScheduler"})  # cannot noise an image on a flow's path
_DPM = frozenset({"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"})  # likewise

_NOISE = Schedulers(text_to_image=_OF_NOISE, image_to_image=_OF_NOISE)
_FLUX2 = Schedulers(text_to_image=_EULER | _UNIPC | _DPM, image_to_image=_EULER | _UNIPC | _DPM)
SCHEDULERS = {  # by family
    "stable-diffusion": _NOISE,
    "stable-diffusion-xl": _NOISE,
    "stable-diffusion-3": Schedulers(
        text_to_image=_EULER | _HEUN | _UNIPC | _DPM, image_to_image=_EULER | _HEUN
    ),
    "flux": Schedulers(text_to_image=_EULER | _UNIPC | _DPM, image_to_image=_EULER),
    "flux2": _FLUX2,
    "flux2-klein": _FLUX2,
    "qwen-image": Schedulers(text_to_image=_EULER | _UNIPC, image_to_image=_EULER),
    "z-image": Schedulers(text_to_image=_EULER, image_to_image=_EULER),
}


def require_scheduler(own: SchedulerMixin, family: str) -> None:
    """Check a model's own scheduler.

    Args:
        own: The model's.
        family: Name of the family of its pipeline.

    Raises:
        ModelError: Its images would depend on the other requests, or it was never run.
    """
    name, usable = type(own).__name__, SCHEDULERS[family].text_to_image
    if name not in usable:
        raise ModelError(
            f"model.path: its scheduler is a {name}, which is not served for {family}; "
            f"make it one of {', '.join(sorted(usable))}"
        )
    if scheduler_config(own).get("stochastic_sampling"):
        raise ModelError(
            "model.path: its scheduler has stochastic_sampling, which draws from random numbers "
            "that requests share; switch it off"
        )


def choose_scheduler(name: str, own: SchedulerMixin, family: str, *, has_init_image: bool) -> str:
    """Return the class that a request gets: the one it names, or the model's own.

    Args:
        name: From the request; empty for the model's own.
        own: The model's.
        family: Name of the family of its pipeline.
        has_init_image: Whether the request starts from an image.

    Raises:
        InvalidRequestError: The family's pipeline does not run with it.
    """
    chosen = name or type(own).__name__
    known = SCHEDULERS[family]
    usable = known.image_to_image if has_init_image else known.text_to_image
    if chosen not in usable:
        start = "from an image" if has_init_image else "from text"
        raise InvalidRequestError(
            FIELD,
            f"{chosen!r} is not one that this model starts {start} with; "
            f"use one of {', '.join(sorted(usable))}",
        )
    return chosen


def make_scheduler(own: SchedulerMixin, name: str) -> SchedulerMixin:
    """Return a fresh scheduler for one request, set up as the model's own, which stays as it is.

    Args:
        own: The model's.
        name: A class that ``choose_scheduler`` has returned for it.
    """
    if name == type(own).__name__:
        return _from_config(type(own), own, {})
    made = cast(type[SchedulerMixin], getattr(diffusers, name))
    return _from_config(made, own, _options(scheduler_config(own), made))


def scheduler_config(scheduler: SchedulerMixin) -> dict[str, object]:
    """Return what a scheduler was made from; every class of them is a ConfigMixin too."""
    return dict(cast(ConfigMixin, scheduler).config)


def is_flow(config: dict[str, object]) -> bool:
    """Return whether a scheduler of this config follows the flow from noise to image."""
    return bool(config.get("use_flow_sigmas", "shift" in config))


def _from_config(
    made: type[SchedulerMixin], own: SchedulerMixin, options: dict[str, object]
) -> SchedulerMixin:
    loaded = cast(type[ConfigMixin], made).from_config(cast(ConfigMixin, own).config, **options)
    return cast(SchedulerMixin, loaded)


def _options(own: dict[str, object], made: type[SchedulerMixin]) -> dict[str, object]:
    """Return what another class must be told, or calls differently."""
    options: dict[str, object] = {"skip_prk_steps": True}  # as every model made for PNDM says
    if is_flow(own):
        shift = own["flow_shift"] if "flow_shift" in own else own["shift"]
        options = {"shift": shift, "flow_shift": shift}
        options |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    expected = inspect.signature(made).parameters
    return {name: value for name, value in options.items() if name in expected}

"""How many of a scheduler's steps a pipeline runs."""

from dataclasses import dataclass
from typing import Protocol, cast

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.schedulers import is_flow, make_scheduler, scheduler_config

_FIELD = "params.num_steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """A scheduler that is only counted."""

    timesteps: range
    order: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counter:
    """As much of a pipeline as its ``get_timesteps`` reads."""

    scheduler: _Counted


class _ImageToImage(Protocol):
    """A pipeline class that skips steps by the strength."""

    @staticmethod
    def get_timesteps(
        pipeline: _Counter, num_inference_steps: int, strength: float, device: None
    ) -> tuple[range, int]: ...


class _Stepping(Protocol):
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...


def num_steps_left(made_by: type[DiffusionPipeline], num_steps: int, strength: float) -> int:
    """Return how many of its steps an image-to-image pipeline runs, by the stock rule.

    Raises:
        InvalidRequestError: The strength leaves none.
    """
    counter = _Counter(scheduler=_Counted(timesteps=range(num_steps)))
    rule = cast(type[_ImageToImage], made_by).get_timesteps
    _, num_left = rule(counter, num_steps, strength, None)
    if num_left < 1:
        raise InvalidRequestError(
            "params.init_image.strength",
            f"{strength:g} of {num_steps} steps leaves none to run; raise it, or num_steps",
        )
    return num_left


def check_scheduler_steps(own: SchedulerMixin, name: str, num_steps: int) -> None:
    """Refuse a number of steps that a scheduler does not have.

    Args:
        own: The model's scheduler.
        name: The class that is used.
        num_steps: Asked of it.

    Raises:
        InvalidRequestError: It refuses, or would run a step that the model was not trained for.
    """
    scheduler = make_scheduler(own, name)
    config = scheduler_config(scheduler)
    if is_flow(config):
        return  # a flow can be cut into any number of steps
    try:
        cast(_Stepping, scheduler).set_timesteps(num_steps)
    except ValueError as error:
        raise InvalidRequestError(_FIELD, f"{name} refuses {num_steps}: {error}") from error
    last = float(cast(_Stepping, scheduler).timesteps.max())
    num_trained = int(str(config["num_train_timesteps"]))
    if last >= num_trained:
        raise InvalidRequestError(
            _FIELD,
            f"{num_steps} makes {name} start at {last:g}, beyond the "
            f"{num_trained} that the model was trained for; use fewer",
        )

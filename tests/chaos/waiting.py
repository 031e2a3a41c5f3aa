"""Waiting: where a task waits, down to the last frame, for who must find out why it does."""

import asyncio
import gc
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType


def place_of(task: "asyncio.Task[None]") -> str:
    """Return the chain of what a task awaits, outermost first."""
    places = []
    awaited: object = task.get_coro()
    while awaited is not None:
        match awaited:
            case CoroutineType():
                frame, following = awaited.cr_frame, awaited.cr_await
            case AsyncGeneratorType():
                frame, following = awaited.ag_frame, awaited.ag_await
            case _:
                frame, following = None, _generator_of(awaited)
        places.append(repr(awaited) if frame is None else _name(frame))
        awaited = following
    return " > ".join(places)


def _name(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _generator_of(awaited: object) -> object | None:
    """Return the generator that one step of an asynchronous loop waits for."""
    if type(awaited).__name__ != "async_generator_asend":
        return None
    referents = gc.get_referents(awaited)
    return next((each for each in referents if isinstance(each, AsyncGeneratorType)), None)

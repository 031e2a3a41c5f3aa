"""The call that a task works for: what is learnt of it on its way, for its log line and spans."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Attribute = str | bool | int | float | tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Phase:
    """A stretch of a call's time that has a name."""

    name: str
    began_at: float  # of time.monotonic
    ended_at: float
    attributes: dict[str, Attribute] = field(default_factory=dict)
    error: str | None = None  # the name of the error's class, if one ended it
    parts: list["Phase"] = field(default_factory=list)  # within it


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """What is known of a call until now; only the task that serves it writes here."""

    client: str = ""  # the name by which it came with credentials
    mix: str | None = None  # canonical name, once the mix is there; empty for the base model
    apply_mode: str | None = None  # as resolved
    trace_id: str = ""
    span_id: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # what it took and made, such as tokens
    phases: list[Phase] = field(default_factory=list)

    def labels(self) -> dict[str, str]:
        """Return what each log line of the call says of it."""
        labels = {"client": self.client, "trace_id": self.trace_id, "span_id": self.span_id}
        named = {name: value for name, value in labels.items() if value}
        return named if self.mix is None else {**named, "mix": self.mix}


# Set at the start of each call, in the task that serves it; tasks that it starts see it, too.
_record: ContextVar[CallRecord | None] = ContextVar("call_record", default=None)
# The phase that the task is in; those that begin within it are parts of it.
_phase: ContextVar[Phase | None] = ContextVar("call_phase", default=None)


@contextmanager
def recorded_call() -> Iterator[CallRecord]:
    """Give the current task a record of its own until the block ends."""
    token = _record.set(CallRecord())
    try:
        yield call_record()
    finally:
        _record.reset(token)


def call_record() -> CallRecord:
    """Return the record of the call that this task works for; outside of one, one that is lost."""
    return _record.get() or CallRecord()


@contextmanager
def phase(name: str) -> Iterator[Phase]:
    """Note when the block began and ended, and the error that ended it, in the call's record.

    The phase may be given attributes until the block ends. Outside of a call it is lost.
    """
    outer = _phase.get()
    inner = Phase(name=name, began_at=time.monotonic(), ended_at=0.0)
    (call_record().phases if outer is None else outer.parts).append(inner)
    token = _phase.set(inner)
    try:
        yield inner
    except (Exception, asyncio.CancelledError) as error:
        inner.error = type(error).__name__
        raise
    finally:
        inner.ended_at = time.monotonic()
        _phase.reset(token)


def note(name: str, value: Attribute) -> None:
    """Give the phase that the task is in an attribute; outside of one it is lost."""
    inner = _phase.get()
    if inner is not None:
        inner.attributes[name] = value

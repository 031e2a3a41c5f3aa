"""Whether an engine does its work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """Whether an engine does its work."""

    is_alive: bool
    stuck_seconds: float  # how long the step that runs has been running
    error: str | None  # why the engine ended

"""Who makes the call that the current task serves."""

from contextvars import ContextVar

from lokr_serve.types import ANONYMOUS, Caller

# Set before a servicer sees the call; it stays ANONYMOUS where no credentials are wanted.
caller_variable: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)

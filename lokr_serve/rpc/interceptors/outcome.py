"""How a call ends: the code that its caller gets."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from grpc.aio import AbortError

from lokr_core import LokrError
from lokr_serve.rpc.interceptors.interceptor import Call, Context
from lokr_serve.rpc.status import error_rule


@contextmanager
def telling(call: Call, tell: Callable[[grpc.StatusCode], None]) -> Iterator[None]:
    """Call ``tell`` at the end of the block with the code that the call ends with."""
    code = grpc.StatusCode.OK
    try:
        yield
    except BaseException as error:
        code = _code(error, call.context)
        raise
    finally:
        tell(code)


def _code(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return the code that a call will end with."""
    match error:
        case LokrError():
            return error_rule(error).code
        case AbortError():
            return context.code()
        case asyncio.CancelledError():
            has_passed = context.time_remaining() == 0  # None without a deadline
            return grpc.StatusCode.DEADLINE_EXCEEDED if has_passed else grpc.StatusCode.CANCELLED
        case _:
            return grpc.StatusCode.INTERNAL

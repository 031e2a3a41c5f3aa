"""The one interceptor: it runs every call inside scopes, such as metrics and error mapping."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from inspect import isasyncgenfunction
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc.aio import ServerInterceptor, ServicerContext

from lokr_serve.types import is_request_id

REQUEST_ID_KEY = "x-request-id"

Request = TypeVar("Request")
Response = TypeVar("Response")
Details = grpc.HandlerCallDetails
# Quoted, since grpc's classes are generic in their type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Request, Response]"
Context = ServicerContext[Any, Any]  # of any call; servicers know their own types
Behaviour = Callable[[Any, Context], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call, as the scopes around it see it."""

    service: str
    method: str
    kind: str  # "unary", "client_stream", "server_stream" or "bidi_stream"
    request_id: str
    context: Context


Scope = Callable[[Call], AbstractAsyncContextManager[None]]


class ScopeInterceptor(ServerInterceptor):
    """Runs each call inside the given scopes, the first outermost."""

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self._scopes = tuple(scopes)

    async def intercept_service(
        self,
        continuation: Callable[[Details], "Awaitable[Handler[Request, Response] | None]"],
        handler_call_details: Details,
    ) -> "Handler[Request, Response] | None":
        """Return the method's handler with the scopes around it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.split("/")
        request_id = _request_id(handler_call_details)
        kind = _kind(handler)
        plain = _plain(_behaviour(handler))

        async def scoped(request: Any, context: Context) -> Any:
            call = Call(
                service=service,
                method=method,
                kind=kind,
                request_id=request_id,
                context=context,
            )
            async with AsyncExitStack() as stack:
                for scope in self._scopes:
                    await stack.enter_async_context(scope(call))
                return await plain(request, context)

        return _rebuild(handler, scoped)


def _request_id(details: Details) -> str:
    for key, value in details.invocation_metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and is_request_id(value):
            return value
    return secrets.token_hex(8)


def _kind(handler: "Handler[Request, Response]") -> str:
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return "unary"
        case True, False:
            return "client_stream"
        case False, True:
            return "server_stream"
        case _:
            return "bidi_stream"


def _behaviour(handler: "Handler[Request, Response]") -> Callable[..., Any]:
    behaviour = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    assert behaviour is not None
    return behaviour


def _plain(behaviour: Callable[..., Any]) -> Behaviour:
    """Return the behaviour as a coroutine function.

    A generator would be left to the garbage collector when its call is cancelled between two
    replies; here it is closed before the call ends.
    """
    if not isasyncgenfunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: Context) -> None:
        async with aclosing(behaviour(request, context)) as replies:
            async for reply in replies:
                await context.write(reply)

    return write_all


def _rebuild(
    handler: "Handler[Request, Response]", behaviour: Behaviour
) -> "Handler[Request, Response]":
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            make = grpc.unary_unary_rpc_method_handler
        case True, False:
            make = grpc.stream_unary_rpc_method_handler
        case False, True:
            make = grpc.unary_stream_rpc_method_handler
        case _:
            make = grpc.stream_stream_rpc_method_handler
    return make(behaviour, handler.request_deserializer, handler.response_serializer)

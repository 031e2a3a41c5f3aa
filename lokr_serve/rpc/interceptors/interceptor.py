"""The one interceptor: it runs every call inside scopes, such as metrics and error mapping."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from inspect import isasyncgenfunction
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import EOF, ServerInterceptor, ServicerContext

from lokr_serve.errors import InvalidRequestError, NotServedError
from lokr_serve.types import is_request_id

REQUEST_ID_KEY = "x-request-id"
UNKNOWN = "unknown"  # service, method and kind of a call that the server has no method for

Request = TypeVar("Request")
Response = TypeVar("Response")
Details = grpc.HandlerCallDetails
# Quoted, since grpc's classes are generic in their type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Request, Response]"
Context = ServicerContext[Any, Any]  # of any call; servicers know their own types
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Serve = Callable[[AsyncIterator[Any], Context], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call, as the scopes around it see it."""

    path: str  # as it was called, even if the server has no such method
    service: str
    method: str
    kind: str  # "unary", "client_stream", "server_stream" or "bidi_stream"
    request_id: str
    context: Context

    @property
    def is_standard(self) -> bool:
        """Whether it is one for health or reflection, which come all the time and from anyone."""
        return self.service.startswith("grpc.")


Scope = Callable[[Call], AbstractAsyncContextManager[None]]


class ScopeInterceptor(ServerInterceptor):
    """Runs each call inside the given scopes, the first outermost.

    Nothing of a request is read before all scopes have let the call in: to grpc every method is
    one that reads a stream, also those that the server does not have.
    """

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self._scopes = tuple(scopes)

    async def intercept_service(
        self,
        continuation: Callable[[Details], "Awaitable[Handler[Request, Response] | None]"],
        handler_call_details: Details,
    ) -> "Handler[Request, Response]":
        """Return the method's handler with the scopes around it."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        _, service, method = (UNKNOWN,) * 3 if handler is None else path.split("/")
        kind = UNKNOWN if handler is None else _kind(handler)
        request_id = _request_id(handler_call_details)
        serve = _refuse if handler is None else _serving(handler)

        async def scoped(requests: AsyncIterator[Any], context: Context) -> None:
            call = Call(
                path=path,
                service=service,
                method=method,
                kind=kind,
                request_id=request_id,
                context=context,
            )
            async with AsyncExitStack() as stack:
                for scope in self._scopes:
                    await stack.enter_async_context(scope(call))
                await serve(requests, context)

        return grpc.stream_stream_rpc_method_handler(
            scoped,
            None if handler is None else _deserializer(handler),
            None if handler is None else handler.response_serializer,
        )


def _deserializer(handler: "Handler[Request, Response]") -> Callable[[bytes], Any] | None:
    """Return what makes messages of bytes, and says by an error of ours where they are none."""
    deserialize = handler.request_deserializer
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            raise InvalidRequestError("request", "is no message of the method's type") from error

    return read


async def _refuse(requests: AsyncIterator[Any], context: Context) -> None:
    raise NotServedError("this server has no such method")


def _serving(handler: "Handler[Request, Response]") -> Serve:
    """Return the method as one that reads its requests and writes its replies itself."""
    behaviour = _plain(_behaviour(handler))

    async def serve(requests: AsyncIterator[Any], context: Context) -> None:
        request = requests if handler.request_streaming else await _read_one(context)
        reply = await behaviour(request, context)
        if not handler.response_streaming:
            await context.write(reply)

    return serve


async def _read_one(context: Context) -> Any:
    request = await context.read()
    if request is EOF:
        raise InvalidRequestError("request", "the call ended without one")
    return request


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

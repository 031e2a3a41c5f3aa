"""The two gRPC listeners: the inference one, and the admin one that may also change adapters."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from lokr_serve.config import Settings
from lokr_serve.errors import EngineStoppedError, SettingsError
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import ImageBackend, TextBackend
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.guard import Guard
from lokr_serve.rpc.health import Health
from lokr_serve.rpc.interceptors.audit import audit_scope
from lokr_serve.rpc.interceptors.authorization import permission_scope, reading_scope
from lokr_serve.rpc.interceptors.interceptor import Scope, ScopeInterceptor
from lokr_serve.rpc.interceptors.observation import access_scope, client_scope, tracing_scope
from lokr_serve.rpc.interceptors.scopes import (
    cut_off_scope,
    error_scope,
    metrics_scope,
    parting_scope,
    request_id_scope,
)
from lokr_serve.rpc.options import listener_options
from lokr_serve.rpc.ports import require_free
from lokr_serve.rpc.servicers.adapters import AdapterServicer
from lokr_serve.rpc.servicers.admission import Admission
from lokr_serve.rpc.servicers.image import ImageServicer
from lokr_serve.rpc.servicers.text import TextServicer
from lokr_serve.v1 import adapters_pb2
from lokr_serve.v1.adapters_pb2_grpc import add_AdapterServiceServicer_to_server
from lokr_serve.v1.images_pb2_grpc import add_ImageServiceServicer_to_server
from lokr_serve.v1.text_pb2_grpc import add_TextServiceServicer_to_server

if TYPE_CHECKING:  # it imports opentelemetry
    from lokr_serve.tracing import CallTracer

SERVICES = (
    TextBackend.service,
    ImageBackend.service,
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
)
_STANDARD_SERVICES = (
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Servicers:
    """What both listeners serve."""

    text: TextServicer
    images: ImageServicer
    adapters: AdapterServicer
    health: Health


class Listener:
    """One gRPC server and where it listens."""

    def __init__(self, server: grpc.aio.Server, guard: Guard, setting: str, wanted: str) -> None:
        self.server = server
        self._guard = guard
        self._setting = setting
        self._wanted = wanted
        self._port: int | None = None

    @property
    def address(self) -> str:
        """HOST:PORT; once it is bound, with the port that was picked for port 0."""
        host, _, port = self._wanted.rpartition(":")
        return f"{host}:{port if self._port is None else self._port}"

    def require_free(self) -> None:
        """Check that its address could be bound now.

        Raises:
            SettingsError: It cannot.
        """
        with self._naming_setting():
            require_free(self._wanted)

    def bind(self) -> None:
        """Bind it; connections wait from now on, until it is started.

        Raises:
            SettingsError: The address cannot be bound.
        """
        with self._naming_setting():
            self._port = self._guard.listen(self.server, self._wanted)

    @property
    def is_bound(self) -> bool:
        """Whether anyone can connect."""
        return self._port is not None

    @contextmanager
    def _naming_setting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            problem = f"{self._setting}: cannot listen on {self._wanted}: {error}"
            raise SettingsError(problem) from error

    async def require_running(self) -> None:
        """Check that calls are taken still.

        Raises:
            EngineStoppedError: The server has ended by itself, as grpc does after bugs of its own.
        """
        try:
            is_running = await self.server.wait_for_termination(0)
        except Exception as error:
            raise EngineStoppedError(f"the listener on {self.address} has failed") from error
        if not is_running:
            raise EngineStoppedError(f"the listener on {self.address} has ended")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listeners:
    """The two gRPC servers."""

    inference: Listener
    admin: Listener
    guard: Guard

    async def start(self) -> None:
        """Take calls from now on, on what is bound."""
        self.guard.start()
        await self.admin.server.start()
        if self.inference.is_bound:
            await self.inference.server.start()

    async def open(self) -> None:
        """Take calls on the inference listener as well, if it was to wait for the model.

        Raises:
            SettingsError: Its address has been taken meanwhile.
        """
        if not self.inference.is_bound:
            self.inference.bind()
            await self.inference.server.start()

    async def require_running(self) -> None:
        """Check that both take calls still.

        Raises:
            EngineStoppedError: One has ended by itself.
        """
        await self.inference.require_running()
        await self.admin.require_running()

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections, and wait for running calls; cancel those that stay longer."""
        self.guard.stop()
        await asyncio.gather(
            self.inference.server.stop(grace_seconds), self.admin.server.stop(grace_seconds)
        )


def build_listeners(
    gate: Gate, settings: Settings, metrics: Metrics, tracer: "CallTracer | None"
) -> Listeners:
    """Build and bind the listeners; they take no call before they are started.

    Without ``early_listen`` the inference listener is bound when it is opened: a gateway that knows
    no more of a server than whether it can connect sends it nothing before.

    Raises:
        SettingsError: An address cannot be bound, or credentials are malformed.
    """
    guard = Guard(settings.security, metrics)
    scopes = (
        parting_scope(gate),
        request_id_scope,
        error_scope,
        metrics_scope(metrics),
        *guard.scopes(),  # whom nobody knows leaves no more than a count
        client_scope,
        *(() if tracer is None else (tracing_scope(tracer),)),
        access_scope(settings.server.access_log),
        audit_scope,
        permission_scope,
        cut_off_scope(gate),
    )
    servicers = _Servicers(
        text=TextServicer(gate, Admission(settings.text, settings.limits, metrics)),
        images=ImageServicer(gate, Admission(settings.image, settings.limits, metrics)),
        adapters=AdapterServicer(gate, settings.limits),
        health=Health(gate, SERVICES),
    )
    server = settings.server
    reading = _build_server(servicers, settings, (*scopes, reading_scope))
    inference = Listener(reading, guard, "server.listen", server.listen)
    changing = _build_server(servicers, settings, scopes)
    admin = Listener(changing, guard, "server.admin_listen", server.admin_listen)
    (inference.bind if server.early_listen else inference.require_free)()
    admin.bind()
    return Listeners(inference=inference, admin=admin, guard=guard)


def _build_server(
    servicers: _Servicers, settings: Settings, scopes: Sequence[Scope]
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=(ScopeInterceptor(scopes),), options=listener_options(settings.server)
    )
    add_TextServiceServicer_to_server(servicers.text, server)
    add_ImageServiceServicer_to_server(servicers.images, server)
    add_AdapterServiceServicer_to_server(servicers.adapters, server)
    add_HealthServicer_to_server(servicers.health, server)
    if _has_reflection(settings):
        reflection.enable_server_reflection((*SERVICES, *_STANDARD_SERVICES), server)
    return server


def _has_reflection(settings: Settings) -> bool:
    """Whether anyone may ask what the server has: not where callers must say who they are."""
    wanted = settings.server.reflection
    return not settings.security.has_credentials if wanted is None else wanted

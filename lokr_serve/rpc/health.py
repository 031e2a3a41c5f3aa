"""The standard health service, told by the gate alone.

The servicer that grpcio-health-checking ships starts as SERVING, forgets watchers when another
one of the same service leaves, and keeps a stopping server waiting for those that stay.
"""

from collections.abc import Sequence

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from lokr_serve.errors import LimitExceededError, ShuttingDownError
from lokr_serve.rpc.gate import Gate, ServingState

LIVENESS = "liveness"
READINESS = "readiness"
MAX_WATCHES = 1000  # at the same time; each costs memory, and callers need no credentials
RETRY_SECONDS = 60.0

Context = ServicerContext[HealthCheckRequest, HealthCheckResponse]
Status = HealthCheckResponse.ServingStatus


class Health(HealthServicer):
    """Reports the gate's state for the server, for each service, and for the probes' names.

    The service of an engine that the model does not run on never serves.
    """

    def __init__(self, gate: Gate, services: Sequence[str]) -> None:
        self._gate = gate
        self._ready_names = frozenset(("", READINESS, *services))
        self._num_watches = 0

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Return the status of one service."""
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "this server has no service of that name"
            )
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """Send the status of one service now and at each change, until the server closes."""
        if self._num_watches >= MAX_WATCHES:
            raise LimitExceededError("health", f"is watched by {MAX_WATCHES} calls", RETRY_SECONDS)
        self._num_watches += 1
        try:
            await self._watch(request.service, context)
        finally:
            self._num_watches -= 1

    async def _watch(self, service: str, context: Context) -> None:
        sent = None
        while True:
            changed = self._gate.changed
            status = self._status(service)
            if status != sent:
                await context.write(HealthCheckResponse(status=status))
                sent = status
            if self._gate.is_closed:
                raise ShuttingDownError(self._gate.state.value)
            await changed.wait()

    def _status(self, service: str) -> Status:
        if service == LIVENESS:
            return _serving(self._gate.state is not ServingState.FAILED)
        if service in self._ready_names:
            return _serving(self._gate.serves(service))
        return HealthCheckResponse.SERVICE_UNKNOWN


def _serving(holds: bool) -> Status:
    return HealthCheckResponse.SERVING if holds else HealthCheckResponse.NOT_SERVING

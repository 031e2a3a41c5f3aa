"""Whether the server serves, what it serves from, and when running calls must end."""

import asyncio
from enum import Enum

from lokr_serve.errors import NotServedError, ShuttingDownError
from lokr_serve.rpc.backend import ENGINE_SERVICES, Backend, ImageBackend, TextBackend


class ServingState(Enum):
    """Where the server is in its life; each value says it to a caller who came at a bad time."""

    LOADING = "the base model is being loaded"
    PREPARING = "the declared adapters are being loaded"
    SERVING = "the server is ready"
    LEAVING = "the server is about to shut down"
    DRAINING = "the server is shutting down"
    FAILED = "the engine has failed"


class Gate:
    """Opens once the backend is there and closes when the server drains or fails.

    Before it opens it may be ajar while adapters are loaded, and before it closes it may say that
    it is about to: then the server is not ready, so that nobody sends it new calls, and serves
    those that come all the same.

    It is the one place that calls, health checks and probes ask. It lives on the event loop.
    """

    def __init__(self) -> None:
        self._state = ServingState.LOADING
        self._backend: Backend | None = None
        self._changed = asyncio.Event()
        self.cut_off: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> ServingState:
        """Where the server is in its life."""
        return self._state

    @property
    def changed(self) -> asyncio.Event:
        """An event that is set at the next change; take it before reading the state."""
        return self._changed

    @property
    def is_ready(self) -> bool:
        """Whether calls should be sent here; some that are sent all the same are served, too."""
        return self._state is ServingState.SERVING

    @property
    def is_closed(self) -> bool:
        """Whether the server serves no more, for good."""
        return self._state in (ServingState.DRAINING, ServingState.FAILED)

    def admit(self, backend: Backend) -> None:
        """Serve the calls that come from ``backend``, and ask for none yet."""
        self._backend = backend
        self._enter(ServingState.PREPARING)

    def open(self, backend: Backend) -> None:
        """Serve from ``backend`` from now on."""
        self._backend = backend
        self._enter(ServingState.SERVING)

    def leave(self) -> None:
        """Ask for no more calls, but serve those that come."""
        self._enter(ServingState.LEAVING)

    def close(self, state: ServingState) -> Backend | None:
        """Refuse new calls from now on; running ones go on, on the backend that is returned."""
        backend, self._backend = self._backend, None
        self._enter(state)
        return backend

    def end_calls(self) -> None:
        """End the calls that still run."""
        if not self.cut_off.done():
            self.cut_off.set_result(self._state.value)

    def backend(self) -> Backend:
        """Return what to serve from.

        Raises:
            ShuttingDownError: The server is not ready, or no longer.
        """
        if self._backend is None:
            raise ShuttingDownError(f"{self._state.value}; try again later or elsewhere")
        return self._backend

    def text(self) -> TextBackend:
        """Return what to serve text from.

        Raises:
            ShuttingDownError: The server is not ready, or no longer.
            NotServedError: Its model makes something else.
        """
        backend = self.backend()
        if not isinstance(backend, TextBackend):
            raise _other_product(backend)
        return backend

    def images(self) -> ImageBackend:
        """Return what to serve images from.

        Raises:
            ShuttingDownError: The server is not ready, or no longer.
            NotServedError: Its model makes something else.
        """
        backend = self.backend()
        if not isinstance(backend, ImageBackend):
            raise _other_product(backend)
        return backend

    def serves(self, service: str) -> bool:
        """Whether calls of one of the server's services should be sent here."""
        if self._backend is None or not self.is_ready:
            return False
        return service == self._backend.service or service not in ENGINE_SERVICES

    def _enter(self, state: ServingState) -> None:
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _other_product(backend: Backend) -> NotServedError:
    return NotServedError(
        f"the model of this server makes {backend.product}; call {backend.service}"
    )

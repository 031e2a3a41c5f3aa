"""Builds everything once, serves until told to stop, and takes it down in order."""

import asyncio
import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging

from lokr_serve.adapters import ManifestFile
from lokr_serve.backends import Base, build_backend, load_base
from lokr_serve.config import ServerSettings, Settings
from lokr_serve.errors import EngineStoppedError
from lokr_serve.logs import configure_logs
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import Backend, Engine, TextBackend
from lokr_serve.rpc.gate import Gate, ServingState
from lokr_serve.rpc.metrics_http import MetricsServer
from lokr_serve.rpc.server import Listeners, build_listeners
from lokr_serve.tracing import build_tracer

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0  # between two looks at the engine
# For calls that have arrived to be told that the server shuts down: grpc would cancel those that it
# has not taken up.
ANSWER_SECONDS = 0.2
END_SECONDS = 2.0  # for calls that were told to end; each waits for the step that it is in
STEP_SECONDS = 20.0  # for the engine's last step, once no call waits for it
FLUSH_SECONDS = 2.0  # for the last spans; a collector that is away gets none of them
TAKE_DOWN_SECONDS = 30.0  # for all that comes after the drain, or the process is killed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a server listens, HOST:PORT each."""

    listen: str
    admin_listen: str
    metrics_listen: str


def run(settings: Settings, on_ready: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT, and leave in order; a second one ends the process at once.

    Args:
        settings: All that can be set.
        on_ready: Is told where the server listens once it is ready, and not before.

    Raises:
        LokrError: The server could not start, or its engine failed.
    """
    configure_logs(settings.server.log_level)
    transformers_logging.disable_default_handler()  # its lines are of the same form as ours
    transformers_logging.enable_propagation()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()

    async def until_signal() -> None:
        with _stop_signals() as stop:
            await serve(settings, stop=stop, on_ready=on_ready)

    asyncio.run(until_signal())


async def serve(
    settings: Settings, *, stop: asyncio.Event, on_ready: Callable[[Addresses], None]
) -> None:
    """Serve until ``stop`` is set, and then for as long as gateways need to look elsewhere.

    The listeners are open, and say that they do not serve yet, while the model is loaded (that for
    inference only with ``early_listen``), and while the adapters are that the manifest declares,
    though calls are served by then. Once it has stopped, or failed, the server takes itself down
    within a bounded time, or the process is ended with code 1 and a trace of every thread.

    Raises:
        LokrError: The server could not start, or its engine failed.
    """
    if settings.model.num_threads is not None:
        # Of this thread, which the engine is built on, and of every thread that comes later.
        torch.set_num_threads(settings.model.num_threads)
    manifest = await _read_manifest(settings.adapters.manifest)
    gate = Gate()
    metrics = Metrics(version=_version(), max_adapter_series=settings.server.max_adapter_series)
    async with AsyncExitStack() as stack:
        stack.callback(faulthandler.cancel_dump_traceback_later)
        tracer = build_tracer(settings.tracing, version=_version())
        if tracer is not None:
            stack.push_async_callback(tracer.close, FLUSH_SECONDS)
        listeners = build_listeners(gate, settings, metrics, tracer)
        probes = MetricsServer(gate, metrics.registry)
        stack.push_async_callback(probes.stop)
        metrics_listen = await probes.start(settings.server.metrics_listen)

        def tell_ready() -> None:
            addresses = Addresses(
                listen=listeners.inference.address,
                admin_listen=listeners.admin.address,
                metrics_listen=metrics_listen,
            )
            on_ready(addresses)

        async with _listening(gate, listeners, settings.server.drain_seconds):
            base = await _unless_stopped(_in_thread(lambda: load_base(settings)), stop)
            if base is not None:
                backend = await _start_backend(base, settings, metrics, stack)
                stuck_seconds = _stuck_step_seconds(backend, settings)
                watch = partial(_watch, backend.engine, listeners, stuck_seconds)
                await listeners.open()
                async with _opening(gate, backend, manifest, tell_ready):
                    await _unless_stopped(asyncio.create_task(watch()), stop)
                    if gate.is_ready and settings.server.lame_duck_seconds:
                        await _leave(gate, watch, settings.server)


async def _read_manifest(path: Path | None) -> ManifestFile | None:
    return None if path is None else await asyncio.to_thread(ManifestFile, path)


@asynccontextmanager
async def _opening(
    gate: Gate, backend: Backend, manifest: ManifestFile | None, on_ready: Callable[[], None]
) -> AsyncIterator[None]:
    """Serve calls during the block, and be ready once all declared adapters have been loaded."""

    def open_gate() -> None:
        gate.open(backend)
        on_ready()

    if manifest is None:
        open_gate()
        yield
        return
    gate.admit(backend)
    async with backend.registry.held_to(manifest, open_gate):
        yield


def _version() -> str:
    try:
        return version("lokr-serve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


async def _start_backend(
    base: Base, settings: Settings, metrics: Metrics, stack: AsyncExitStack
) -> Backend:
    """Build what calls are served from; ``stack`` takes it down after the last call."""
    backend = await build_backend(base, settings, metrics, stack)
    backend.engine.start()
    stack.push_async_callback(_stop_engine, backend.engine)
    await backend.engine.begun()
    return backend


def _stuck_step_seconds(backend: Backend, settings: Settings) -> float:
    section = settings.text if isinstance(backend, TextBackend) else settings.image
    return section.stuck_step_seconds


async def _leave(
    gate: Gate, watch: Callable[[], Coroutine[None, None, None]], server: ServerSettings
) -> None:
    """Serve on, not ready any more, until whoever sends calls here has had the time to see it."""
    longest_seconds = server.lame_duck_seconds + server.drain_seconds + TAKE_DOWN_SECONDS
    faulthandler.dump_traceback_later(longest_seconds, exit=True)
    gate.leave()
    logger.info("not ready any more; calls are taken for %.0f s", server.lame_duck_seconds)
    with suppress(TimeoutError):
        async with asyncio.timeout(server.lame_duck_seconds):
            await watch()


@asynccontextmanager
async def _listening(gate: Gate, listeners: Listeners, drain_seconds: float) -> AsyncIterator[None]:
    """Listen; at the end let running calls finish, then end those that are left."""
    await listeners.start()
    try:
        yield
    except EngineStoppedError as error:
        logger.critical("%s", error)
        await _close(gate, listeners, ServingState.FAILED, drain_seconds=0)
        raise
    finally:
        if not gate.is_closed:
            logger.info("shutting down; running calls have %.0f s", drain_seconds)
            await _close(gate, listeners, ServingState.DRAINING, drain_seconds)


async def _close(
    gate: Gate, listeners: Listeners, state: ServingState, drain_seconds: float
) -> None:
    """Stop the listeners: calls may finish, then are told to end, then wait for no step.

    New calls are refused from now on.
    """
    faulthandler.dump_traceback_later(drain_seconds + TAKE_DOWN_SECONDS, exit=True)
    backend = gate.close(state)
    await asyncio.sleep(min(ANSWER_SECONDS, drain_seconds))
    stopping = asyncio.create_task(listeners.stop(drain_seconds + 2 * END_SECONDS))
    await asyncio.wait({stopping}, timeout=drain_seconds)
    gate.end_calls()
    await asyncio.wait({stopping}, timeout=END_SECONDS)
    if backend is not None and not stopping.done():
        backend.engine.abandon()
    await stopping


async def _stop_engine(engine: Engine) -> None:
    try:
        await engine.stop(STEP_SECONDS)
    except EngineStoppedError as error:
        logger.critical("%s", error)
        faulthandler.dump_traceback()  # says where the step is
        raise


async def _watch(engine: Engine, listeners: Listeners, stuck_step_seconds: float) -> None:
    """Raise once the engine is dead or stuck, or a listener dead; neither can be relied on to."""
    while True:
        await listeners.require_running()
        health = engine.health()
        if health.error is not None:
            raise EngineStoppedError(f"the engine has failed: {health.error}")
        if not health.is_alive:
            raise EngineStoppedError("the engine's thread has ended")
        if health.stuck_seconds > stuck_step_seconds:
            engine.abandon()
            raise EngineStoppedError(
                f"the engine has been in one step for {health.stuck_seconds:.0f} s"
            )
        await asyncio.sleep(WATCH_SECONDS)


async def _unless_stopped(work: asyncio.Future[T], stop: asyncio.Event) -> T | None:
    """Return the result of ``work``, or None if ``stop`` is set first."""
    stopping = asyncio.create_task(stop.wait())
    stopping.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        stopping.cancel()
    return None


def _in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a thread that does not keep the process from ending."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised again where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return asyncio.wrap_future(outcome)


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """Give the event that the first SIGTERM or SIGINT sets; the second one ends the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        stop.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

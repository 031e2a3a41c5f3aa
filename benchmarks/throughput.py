"""throughput: the server over gRPC, its client in a third process, against the engine alone."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engines import Serving, entered, serving
from benchmarks.figures import Claim, Figure
from benchmarks.harness import interleave
from benchmarks.models import MODEL_20M, build_model, vocab_of
from benchmarks.scope import Scope
from benchmarks.store import write_store
from benchmarks.streams import Load, Spent, call_server, spend, tokens_of

NUM_ADAPTERS = 16
MAX_TOKENS = 16
STOP_SECONDS = 60
COMMAND = (sys.executable, "-m", "lokr_serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """A server in a process of its own."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken so far."""
        line = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        user, system = line.rpartition(")")[2].split()[11:13]  # fields 14 and 15 of the line
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sides:
    """The engine in this process, and the server with its client in two others."""

    runner: asyncio.Runner
    engine: Serving
    server: _Server
    client: ProcessPoolExecutor

    def compare(self, load: Load, num_pairs: int) -> Figure:
        """Measure tokens per second, and the processor time that they take."""
        own: list[Spent] = []
        of_client: list[Spent] = []
        of_server: list[float] = []

        def run_engine() -> float:
            own.append(self.runner.run(self._run_engine(load)))
            return own[-1].tokens_per_second

        def run_server() -> float:
            began = self.server.cpu_seconds()
            call = self.client.submit(call_server, self.server.address, load)
            of_client.append(call.result())
            of_server.append(self.server.cpu_seconds() - began)
            return of_client[-1].tokens_per_second

        pairs = interleave(run_engine, run_server, num_pairs)
        claim = Claim(
            name=f"server over gRPC, {len(load.ids)} streams",
            against="engine alone",
            unit="tokens/s",
        )
        spent = {
            "engine alone": sum(spent.cpu_seconds for spent in own),
            "server": sum(of_server),
            "client": sum(spent.cpu_seconds for spent in of_client),
        }
        num_tokens = sum(spent.num_tokens for spent in own)
        times = (f"{name} {seconds / num_tokens * 1e6:,.0f}" for name, seconds in spent.items())
        return claim.of_pairs(pairs, f"processor time in µs for each token: {', '.join(times)}")

    async def _run_engine(self, load: Load) -> Spent:
        async with AsyncExitStack() as stack:
            leases = [await stack.enter_async_context(self.engine.lease(id_)) for id_ in load.ids]

            async def stream(index: int) -> int:
                events = self.engine.generate(leases[index], load.prompt(index), load.max_tokens)
                return sum([tokens_of(event) async for event in events])

            return await spend(stream, load)


def run(scope: Scope) -> list[Figure]:
    """Measure tokens per second of both, for few and for many streams."""
    model = build_model(scope.size(MODEL_20M))
    model.save_pretrained(scope.folder / "model")
    store = write_store(scope.folder / "adapters", model, NUM_ADAPTERS)
    loads = [
        Load(
            ids=[store.ids[index % NUM_ADAPTERS] for index in range(num_streams)],
            max_tokens=scope.count(MAX_TOKENS, 2),
            vocab=vocab_of(model),
        )
        for num_streams in (scope.count(16, 2), scope.count(64, 4))
    ]
    spawn = multiprocessing.get_context("spawn")
    with (
        _running_server(scope.folder) as server,
        ProcessPoolExecutor(1, mp_context=spawn) as client,
        asyncio.Runner() as runner,
        entered(runner, serving(model, store.root)) as engine,
    ):
        sides = _Sides(runner=runner, engine=engine, server=server, client=client)
        return [sides.compare(load, scope.num_pairs) for load in loads]


@contextmanager
def _running_server(folder: Path) -> Iterator[_Server]:
    """Serve a folder's model and adapters, with as many threads as this process has."""
    listeners = ("--listen", "--admin-listen", "--metrics-listen")
    ports = [word for flag in listeners for word in (flag, "127.0.0.1:0")]
    folders = ["--model", str(folder / "model"), "--adapter-dir", str(folder / "adapters")]
    threads = ["--threads", str(torch.get_num_threads()), "--log-level", "warning"]
    command = [*COMMAND, "serve", *folders, *ports, *threads]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield _Server(address=ready["listen"], pid=process.pid)
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)

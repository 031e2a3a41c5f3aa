"""The server, started in its own process as a user would start it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.data import DemoData

START_SECONDS = 120
STOP_SECONDS = 60
PROGRAMS = Path(sys.executable).parent


class DemoError(Exception):
    """The demo did not show what it is to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a running server listens, HOST:PORT each."""

    listen: str
    admin_listen: str
    metrics_listen: str

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would read."""
        return f"http://{self.metrics_listen}/metrics"


@asynccontextmanager
async def running_server(data: DemoData) -> AsyncIterator[Server]:
    """Start the server, give its addresses once it is ready, and stop it at the end.

    Raises:
        DemoError: The server did not start, or did not stop as it should.
    """
    with data.log.open("wb") as log:
        program, *arguments = serve_command(data)
        process = await asyncio.create_subprocess_exec(
            PROGRAMS / program,
            *arguments,
            *free_ports(),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            yield await _ready(process, data)
            process.terminate()
            status = await asyncio.wait_for(process.wait(), STOP_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise DemoError(f"the server ended with status {status}; see {data.log}")


async def _ready(process: asyncio.subprocess.Process, data: DemoData) -> Server:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    if not line:
        last = data.log.read_text().strip().splitlines()[-1:]
        raise DemoError("\n".join([f"the server did not start; see {data.log}", *last]))
    ready = json.loads(line)
    return Server(
        listen=ready["listen"],
        admin_listen=ready["admin_listen"],
        metrics_listen=ready["metrics_listen"],
    )


def serve_command(data: DemoData) -> list[str]:
    """Return the command line that serves the demo's model, on the usual ports."""
    folders = ["--model", str(data.model), "--adapter-dir", str(data.adapters)]
    # One thread: a step of so small a model is over before a second one has woken.
    return ["lokr-serve", "serve", *folders, "--threads", "1"]


def free_ports() -> list[str]:
    """Return the flags that let the server pick free ports."""
    listeners = ("--listen", "--admin-listen", "--metrics-listen")
    return [word for flag in listeners for word in (flag, "127.0.0.1:0")]

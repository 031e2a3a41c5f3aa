"""The server, started in its own process as a user would start it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

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
async def running_server(command: Sequence[str], log_file: Path) -> AsyncIterator[Server]:
    """Start the server, give its addresses once it is ready, and stop it at the end.

    Raises:
        DemoError: The server did not start, or did not stop as it should.
    """
    with log_file.open("wb") as log:
        program, *arguments = command
        process = await asyncio.create_subprocess_exec(
            PROGRAMS / program,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            yield await _ready(process, log_file)
            process.terminate()
            status = await asyncio.wait_for(process.wait(), STOP_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise DemoError(f"the server ended with status {status}; see {log_file}")


async def _ready(process: asyncio.subprocess.Process, log_file: Path) -> Server:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    if not line:
        raise DemoError(_failed_start(log_file))
    ready = json.loads(line)
    return Server(
        listen=ready["listen"],
        admin_listen=ready["admin_listen"],
        metrics_listen=ready["metrics_listen"],
    )


def _failed_start(log_file: Path) -> str:
    last = log_file.read_text().strip().splitlines()[-1:]
    return "\n".join([f"the server did not start; see {log_file}", *last])


def serve_command(model: Path, adapters: Path) -> list[str]:
    """Return the command line that serves a model of the demo, on the usual ports."""
    folders = ["--model", str(model), "--adapter-dir", str(adapters)]
    # One thread: a step of so small a model is over before a second one has woken.
    return ["lokr-serve", "serve", *folders, "--threads", "1"]


def free_ports() -> list[str]:
    """Return the flags that let the server pick free ports."""
    listeners = ("--listen", "--admin-listen", "--metrics-listen")
    return [word for flag in listeners for word in (flag, "127.0.0.1:0")]

"""Server: the real program, started, killed and started again."""

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lokr_serve.app import Addresses
from lokr_serve.client import AsyncClient
from tests.chaos.access import Known

READY_SECONDS = 120.0
END_SECONDS = 60.0
CALL_SECONDS = 60.0  # for a call that has no hurry


@dataclass(slots=True, kw_only=True, eq=False)
class Life:
    """One process of the server, from its start to its end."""

    number: int
    process: Process
    addresses: Addresses
    log: Path
    user: AsyncClient
    admin: AsyncClient
    start_seconds: float
    is_ending: bool = False  # by our hand
    num_rounds: int = 0

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.returncode is not None

    async def kill(self) -> None:
        """End the process as a lack of power would."""
        self.is_ending = True
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Ask the process to end, and return its code."""
        self.is_ending = True
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), END_SECONDS)

    async def close(self) -> None:
        """End the process if it still runs, and let go of it."""
        if not self.is_dead:
            await self.kill()
        await self.user.close()
        await self.admin.close()


class Server:
    """Starts one process after another over the same files."""

    def __init__(self, settings: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._num_lives = 0

    async def start(self) -> Life:
        """Start a process, and wait until it says that it is ready."""
        number = self._num_lives
        self._num_lives += 1
        began_at = time.monotonic()
        log = self._logs / f"life-{number}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lokr_serve", "serve", "--config", str(self._settings)),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=stderr,
                env=self._environment,
            )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), READY_SECONDS)
        if not line:
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
        ready = json.loads(line)
        addresses = Addresses(
            listen=ready["listen"],
            admin_listen=ready["admin_listen"],
            metrics_listen=ready["metrics_listen"],
        )
        return Life(
            number=number,
            process=process,
            addresses=addresses,
            log=log,
            user=_client(addresses.listen, Known.USER),
            admin=_client(addresses.admin_listen, Known.OPERATOR),
            start_seconds=round(time.monotonic() - began_at, 2),
        )


def _client(address: str, known: Known) -> AsyncClient:
    return AsyncClient(address, credentials=known.credentials, timeout_seconds=CALL_SECONDS)

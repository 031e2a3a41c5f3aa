"""Replicas: servers in processes of their own, which may be stopped, killed and started anew."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from lokr_serve.config import ENVIRONMENT_PREFIX
from tests.gateways.loopback import Loopback, Ports

NUM_REPLICAS = 3
STOP_SECONDS = 60.0
LAME_DUCK_SECONDS = 2.0  # more than a gateway needs to see that a replica is not ready
DRAIN_SECONDS = 40.0
CACHE_TOKENS = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What replicas serve, and where they write what they have to say."""

    model: Path
    adapters: Path
    logs: Path


@dataclass(slots=True, kw_only=True)
class Replica:
    """One server, always on the same host and ports."""

    host: str
    ports: Ports
    place: Place
    flags: Sequence[str] = ()
    _process: "subprocess.Popen[str] | None" = None

    def start(self) -> None:
        """Start a process; it is not ready yet."""
        assert self._process is None
        settings = {
            "TEXT__CACHE_TOKENS": CACHE_TOKENS,
            "SERVER__EARLY_LISTEN": "false",  # nginx only sees whether it can connect
            "ADAPTERS__UPLOADS": self.place.logs / f"{self.host}-uploads",
        }
        variables = {f"{ENVIRONMENT_PREFIX}{key}": str(value) for key, value in settings.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        with (self.place.logs / f"{self.host}.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lokr_serve", "serve", *self._flags(), *self.flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def _flags(self) -> Iterator[str]:
        yield from ("--model", str(self.place.model), "--adapter-dir", str(self.place.adapters))
        yield from ("--listen", f"{self.host}:{self.ports.inference}")
        yield from ("--admin-listen", f"{self.host}:{self.ports.admin}")
        yield from ("--metrics-listen", f"{self.host}:{self.ports.metrics}")
        yield from ("--threads", "1", "--device", "cpu")
        yield from ("--lame-duck-seconds", str(LAME_DUCK_SECONDS))
        yield from ("--drain-seconds", str(DRAIN_SECONDS))

    @property
    def address(self) -> str:
        """Where it takes requests itself, without a gateway."""
        return f"{self.host}:{self.ports.inference}"

    @property
    def admin_address(self) -> str:
        """Where it takes calls that change adapters."""
        return f"{self.host}:{self.ports.admin}"

    def wait_ready(self) -> None:
        """Return once it is ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the replica ended at its start; see {self.place.logs}"
        assert json.loads(line)["event"] == "ready"

    def stop(self) -> None:
        """Let it leave in order, and wait until it is gone."""
        assert self._end(signal.SIGTERM) == 0

    def kill(self) -> None:
        """End it at once, as a node does that loses its power."""
        assert self._end(signal.SIGKILL) == -signal.SIGKILL

    def discard(self) -> None:
        """End it at once, if it has not ended by itself."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        with process:
            process.send_signal(number)
            return process.wait(STOP_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not ended."""
        return self._process is not None

    def metrics(self) -> str:
        """Return all of its metrics as text."""
        with urlopen(f"http://{self.host}:{self.ports.metrics}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def count(self, name: str, **labels: str) -> float:
        """Return a metric: the sum over all series that have these labels."""
        samples = self._samples(name)
        return sum(value for given, value in samples if labels.items() <= given.items())

    def requests_by_adapter(self) -> Counter[str]:
        """Return how many requests there were for each adapter since the start."""
        samples = self._samples("lokr_serve_adapter_requests_total")
        return Counter({labels["adapter_id"]: int(value) for labels, value in samples})

    def _samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Replicas of one model and the same adapters."""

    replicas: Sequence[Replica]

    @property
    def ports(self) -> Ports:
        """What listens where; the same on every host."""
        return self.replicas[0].ports

    @property
    def hosts(self) -> list[str]:
        """Where they are."""
        return [replica.host for replica in self.replicas]

    def restart(self, replica: Replica) -> None:
        """Let a replica leave, and bring a new process up in its place, as a rollout does."""
        replica.stop()
        replica.start()
        replica.wait_ready()

    def requests_by_adapter(self) -> dict[str, Counter[str]]:
        """Return the requests of every replica that runs, by its host."""
        return {r.host: r.requests_by_adapter() for r in self.replicas if r.is_running}


@contextmanager
def running_fleet(
    loopback: Loopback,
    place: Place,
    flags: Sequence[str] = (),
    *,
    num_replicas: int = NUM_REPLICAS,
) -> Iterator[Fleet]:
    """Run replicas on hosts of their own, all with the same ports and the same further flags."""
    ports = loopback.free_ports()
    hosts = [loopback.host(1 + number) for number in range(num_replicas)]
    replicas = [Replica(host=host, ports=ports, place=place, flags=flags) for host in hosts]
    fleet = Fleet(replicas=replicas)
    try:
        for replica in fleet.replicas:
            replica.start()
        for replica in fleet.replicas:
            replica.wait_ready()
        yield fleet
    finally:
        for replica in fleet.replicas:
            if replica.is_running:
                replica.discard()

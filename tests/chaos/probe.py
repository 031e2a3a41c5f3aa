"""Probe: what a process of the server says of itself, and what the system says of it."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

SCRAPE_SECONDS = 20.0
PAGE_BYTES = 4096


class Samples:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """Return one sample; 0 if it has none yet."""
        return self._values.get((name, frozenset((labels or {}).items())), 0.0)

    def total(self, name: str) -> float:
        """Return the sum of a name's samples."""
        return sum(value for (each, _), value in self._values.items() if each == name)


async def http_get(address: str, path: str) -> tuple[int, str]:
    """Return code and body of a plain request, such as Prometheus makes."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(SCRAPE_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        reply = await reader.read()
        writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split(maxsplit=2)[1]), body.decode()


async def scrape(address: str) -> Samples:
    """Return the metrics of a server."""
    _, body = await http_get(address, "/metrics")
    return Samples(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the system gives a process."""

    num_files: int
    num_threads: int
    resident_bytes: int


def open_files(pid: int) -> Mapping[str, int]:
    """Return what a process has open, by kind; sockets by the port and the state of the peer."""
    peers = _peers(pid)
    kinds: Counter[str] = Counter()
    for entry in Path("/proc", str(pid), "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            target = str(entry.readlink())
            kinds[peers.get(target, re.sub(r"[0-9]+", "N", target))] += 1
    return kinds


def _peers(pid: int) -> Mapping[str, str]:
    """Return what each socket is connected to, as the kernel tells it."""
    found = {}
    for kind in ("tcp", "tcp6"):
        for line in Path("/proc", str(pid), "net", kind).read_text().splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
            found[f"socket:[{inode}]"] = f"tcp from {ports[0]} to {ports[1]}, state {state}"
    return found


def holdings(pid: int) -> Holdings:
    """Return what a process holds now."""
    process = Path("/proc", str(pid))
    resident_pages = int((process / "statm").read_text().split()[1])
    return Holdings(
        num_files=len(list((process / "fd").iterdir())),
        num_threads=len(list((process / "task").iterdir())),
        resident_bytes=resident_pages * PAGE_BYTES,
    )

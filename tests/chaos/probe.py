"""Probe: what a process of the server says of itself, and what the system says of it."""

import asyncio
from collections.abc import Mapping
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


def holdings(pid: int) -> Holdings:
    """Return what a process holds now."""
    process = Path("/proc", str(pid))
    resident_pages = int((process / "statm").read_text().split()[1])
    return Holdings(
        num_files=len(list((process / "fd").iterdir())),
        num_threads=len(list((process / "task").iterdir())),
        resident_bytes=resident_pages * PAGE_BYTES,
    )

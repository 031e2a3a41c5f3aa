"""Picker: chooses replicas as an inference gateway's endpoint picker does, for comparison alone.

It reads what such a picker reads, each replica's metrics, and gives the points that the scorers
of llm-d's router give: for adapters that are there, and for short queues.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.gateways.replicas import Replica

READ_SECONDS = 0.1  # between two looks at the metrics
RESIDENT, ROOM, WAITED_FOR, FULL = 1.0, 0.8, 0.6, 0.0  # points for one adapter on one replica
# What points count, as in deploy/kustomize/components/inference-pool.
LORA_WEIGHT, WAITING_WEIGHT, RUNNING_WEIGHT = 2, 2, 1
_LORA, _WAITING, _RUNNING = (
    "lokr_serve_lora_requests_info",
    "lokr_serve_requests_waiting",
    "lokr_serve_requests_running",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the metrics of one replica said."""

    resident: frozenset[str]
    waited_for: frozenset[str]
    max_adapters: int
    num_waiting: float
    num_running: float

    def points(self, adapter_id: str) -> float:
        """Return the points for an adapter."""
        if adapter_id in self.resident:
            return RESIDENT
        if len(self.resident) + len(self.waited_for) < self.max_adapters:
            return ROOM
        return WAITED_FOR if adapter_id in self.waited_for else FULL


class Picker:
    """Picks a replica for each request."""

    def __init__(self, replicas: Sequence[Replica], draw: random.Random) -> None:
        self._replicas = replicas
        self._draw = draw
        self._readings: Mapping[str, Reading] = {}

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read metrics again and again until the block ends."""
        await self._read()
        reader = asyncio.create_task(self._read_on())
        try:
            yield
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader

    def pick(self, adapter_id: str) -> str:
        """Return the address of the replica with the most points; of equal ones, any."""
        readings = self._readings.values()
        waiting = _shortness([reading.num_waiting for reading in readings])
        running = _shortness([reading.num_running for reading in readings])
        points = {
            address: LORA_WEIGHT * reading.points(adapter_id)
            + WAITING_WEIGHT * waiting(reading.num_waiting)
            + RUNNING_WEIGHT * running(reading.num_running)
            for address, reading in self._readings.items()
        }
        best = max(points.values())
        return self._draw.choice([address for address in points if points[address] == best])

    async def _read_on(self) -> None:
        while True:
            await asyncio.sleep(READ_SECONDS)
            await self._read()

    async def _read(self) -> None:
        texts = await asyncio.gather(*(asyncio.to_thread(r.metrics) for r in self._replicas))
        self._readings = {
            replica.address: read(text) for replica, text in zip(self._replicas, texts, strict=True)
        }


def _shortness(lengths: Sequence[float]) -> Callable[[float], float]:
    """Return a function that gives 1 for the shortest of these lengths, and 0 for the longest."""
    longest, shortest = max(lengths), min(lengths)
    if longest == shortest:
        return lambda _: 1.0
    return lambda length: (longest - length) / (longest - shortest)


def read(text: str) -> Reading:
    """Read the metrics that a picker reads."""
    lines = [line for line in text.splitlines(keepends=True) if _is_read(line)]
    samples = {
        sample.name: sample
        for family in text_string_to_metric_families("".join(lines))
        for sample in family.samples
    }
    lora = samples[_LORA].labels
    return Reading(
        resident=_names(lora["running_lora_adapters"]),
        waited_for=_names(lora["waiting_lora_adapters"]),
        max_adapters=int(lora["max_lora"]),
        num_waiting=samples[_WAITING].value,
        num_running=samples[_RUNNING].value,
    )


def _is_read(line: str) -> bool:
    return line.startswith((_LORA, _WAITING, _RUNNING))


def _names(label: str) -> frozenset[str]:
    return frozenset(filter(None, label.split(",")))

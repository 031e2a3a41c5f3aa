"""A registry that is held to a manifest, for tests that change the one and look at the other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lokr_serve.adapters import AdapterRegistry, ManifestFile
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterStatus
from tests.serve.adapters.waiting import until

LOOK_SECONDS = 0.01  # between two looks at the manifest

Entry = dict[str, object]
Hold = Callable[..., AbstractAsyncContextManager["Declaring"]]


def entry(adapter_id: str, source: str | None = None, **fields: object) -> Entry:
    """Return one entry of a manifest, by default from the source of the same name."""
    return {"id": adapter_id, "source": source or adapter_id, **fields}


def write_manifest(path: Path, *entries: Entry) -> None:
    """Put a manifest in the place of the one that is there."""
    aside = path.with_suffix(".new")
    aside.write_text(yaml.safe_dump({"adapters": list(entries)}))
    aside.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaring:
    """A registry and the manifest that it is held to."""

    registry: AdapterRegistry
    path: Path
    metrics: Metrics
    completed: list[bool] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every declared adapter has been loaded once."""
        return bool(self.completed)

    def declare(self, *entries: Entry) -> None:
        """Change the manifest."""
        write_manifest(self.path, *entries)

    def status(self, adapter_id: str) -> AdapterStatus:
        """Return what is known of an adapter."""
        return self.registry.get(adapter_id)

    def has(self, adapter_id: str) -> bool:
        """Whether an id is registered."""
        return adapter_id in {status.adapter_id for status in self.registry.list()}

    def is_ready(self, adapter_id: str, source: str | None = None) -> bool:
        """Whether an id is declared, and in memory from a source."""
        if not self.has(adapter_id):
            return False
        status = self.status(adapter_id)
        is_there = status.state is AdapterState.READY and status.is_declared
        return is_there and status.source == (source or adapter_id)

    def sample(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"lokr_serve_{name}", labels)

    def count(self, state: str) -> float | None:
        """Return how many declared adapters are in a state."""
        return self.sample("declared_adapters", state=state)


@asynccontextmanager
async def declaring(
    registry: AdapterRegistry, path: Path, metrics: Metrics, *entries: Entry
) -> AsyncIterator[Declaring]:
    """Hold a registry to a manifest of these entries during the block."""
    write_manifest(path, *entries)
    scene = Declaring(registry=registry, path=path, metrics=metrics)
    file = await asyncio.to_thread(ManifestFile, path)
    async with registry.held_to(file, lambda: scene.completed.append(True)):
        yield scene


async def until_complete(scene: Declaring) -> None:
    """Wait until every declared adapter has been loaded once."""
    await until(lambda: scene.is_complete)

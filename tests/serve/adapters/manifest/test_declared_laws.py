"""The law of declared adapters: when all is quiet, the registry is what the manifest says."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from lokr_core import Adapted, LokrError
from lokr_serve.adapters.manifest.reading import DeclaredAdapter, read_manifest
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterStatus, ApplyMode
from tests.serve.adapters.callers import part, spec
from tests.serve.adapters.conftest import Store
from tests.serve.adapters.manifest.declaring import Declaring, Entry, Hold, entry
from tests.serve.adapters.waiting import until

IDS = ("a", "b", "c", "d")
ALIASES = ("x", "y", "z")
SOURCES = ("s0", "s1", "s2", "broken", "missing")
GOOD = SOURCES[:3]
NUM_ROUNDS = 12
REQUEST_SECONDS = 0.01


@dataclass(slots=True, kw_only=True)
class World:
    """Everything that goes on around one registry."""

    scene: Declaring
    store: Store
    chance: random.Random
    requests: list[asyncio.Task[None]] = field(default_factory=list)

    def declare(self) -> None:
        """Change the manifest at random."""
        ids = self.chance.sample(IDS, self.chance.randint(0, len(IDS)))
        free = [name for name in (*ALIASES, *IDS) if name not in ids]
        aliases = iter(self.chance.sample(free, len(free)))
        self.scene.declare(*(self._entry(name, aliases) for name in ids))

    def _entry(self, name: str, aliases: Iterator[str]) -> Entry:
        chosen = [
            alias for alias, _ in zip(aliases, range(self.chance.randint(0, 2)), strict=False)
        ]
        return entry(
            name,
            self.chance.choice(SOURCES),
            pinned=self.chance.random() < 0.3,
            ttl_seconds=self.chance.choice([0, 0, 0.02, 60]),
            aliases=chosen,
            scale_override=self.chance.choice([None, None, 0.5]),
        )

    async def request(self) -> None:
        """Use an adapter, or an alias, for a moment; it may well not be there."""
        try:
            name = self.chance.choice((*IDS, *ALIASES))
            async with self.scene.registry.lease([part(name)], ApplyMode.UNMERGED):
                await asyncio.sleep(self.chance.random() * REQUEST_SECONDS)
        except LokrError:
            pass

    async def administrate(self) -> None:
        """Do something by hand; it may well be refused."""
        registry, name = self.scene.registry, self.chance.choice(IDS)
        source = self.chance.choice(GOOD)
        try:
            match self.chance.randrange(3):
                case 0:
                    await registry.load(spec(name, source, replace=True, pinned=True))
                case 1:
                    await registry.unload(name, drain_seconds=0.01, force=True)
                case _:
                    await registry.update(name, pinned=True, ttl_seconds=0.01)
        except LokrError:
            pass

    def break_and_mend(self) -> None:
        """Change the files themselves."""
        self.store.write(self.chance.choice(GOOD), seed=self.chance.randrange(6))

    async def run(self) -> None:
        """Let all of it happen at the same time."""
        for _ in range(NUM_ROUNDS):
            self.declare()
            for _ in range(3):
                self.requests.append(asyncio.create_task(self.request()))
                self.requests.append(asyncio.create_task(self.administrate()))
            if self.chance.random() < 0.3:
                self.break_and_mend()
            await asyncio.sleep(self.chance.random() * 0.03)
        await asyncio.gather(*self.requests)


def disagreements(scene: Declaring) -> list[str]:
    """Say where the registry is not what the manifest says."""
    manifest = read_manifest(scene.path.read_bytes())
    declared, wanted = manifest.adapters, manifest.aliases
    failing = {name for name, item in declared.items() if item.request.source not in GOOD}
    known = {status.adapter_id: status for status in scene.registry.list()}
    problems = [f"{name} is missing" for name in declared.keys() - known.keys()]
    for name, status in known.items():
        if name in declared:
            problems += _problems(status, declared[name])
        elif status.is_declared and not (status.aliases or name in wanted):
            problems.append(f"{name} is declared still")  # nor does a name that waits need it
        left = set(status.aliases) - wanted.keys() - failing  # an id that fails may be one still
        problems += [f"{alias} is left" for alias in left]
    for alias, target in wanted.items():
        if target not in failing and target in known and alias not in known[target].aliases:
            problems.append(f"{alias} is not {target}")
    return problems


def _problems(status: AdapterStatus, declared: DeclaredAdapter) -> list[str]:
    name, source = status.adapter_id, declared.request.source
    if not status.is_declared or status.ttl_seconds != declared.ttl_seconds:
        return [f"{name} is not as declared"]
    if source not in GOOD:
        is_failed = status.state is AdapterState.FAILED or bool(status.warnings)
        return [] if is_failed else [f"{name} has not failed"]
    if status.source != source or not status.version:
        return [f"{name} has not been loaded"]
    if status.state not in (AdapterState.READY, AdapterState.REGISTERED):
        return [f"{name} is {status.state}"]
    return [] if status.pinned == declared.pinned else [f"the pin of {name} is wrong"]


@pytest.mark.parametrize("seed", range(6))
async def test_when_all_is_quiet_the_registry_is_what_the_manifest_says(
    hold: Hold, store: Store, adapted: Adapted, metrics: Metrics, seed: int
) -> None:
    """Whatever manifests came, whatever was done by hand, and whoever made requests meanwhile."""
    for number, name in enumerate(GOOD):
        store.write(name, seed=number)
    store.write_broken("broken")
    shutil.rmtree(store.root / "a")  # b and c lie in the folder under their ids
    budget = 6 * store.num_bytes
    async with hold(device_bytes=budget, max_retry_seconds=0.05, max_loads=3) as scene:
        await scene.registry.scan()
        world = World(scene=scene, store=store, chance=random.Random(seed))
        await world.run()
        with suppress(TimeoutError):
            await until(lambda: not disagreements(scene))
        left = disagreements(scene)
        assert not left
        scene.declare()
        await until(lambda: not any(status.is_declared for status in scene.registry.list()))
        for status in scene.registry.list():
            await scene.registry.unload(status.adapter_id, drain_seconds=0, force=False)

        assert not left
        assert (
            metrics.registry.get_sample_value("lokr_serve_adapter_bytes", {"tier": "device"}) == 0
        )
        assert scene.registry.list() == []

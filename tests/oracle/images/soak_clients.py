"""Clients of the soak, of whom many leave early, and an operator who swaps adapters meanwhile."""

import asyncio
import random
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from safetensors.torch import load
from torch import Tensor

from lokr_core import AdapterRef, read_adapter
from lokr_core.spec import ModelSpec
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterBusyError,
    AdapterDrainingError,
    AdapterNotFoundError,
    AdapterUnloadedError,
)
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.types import (
    GeneratedImage,
    ImageEvent,
    ImageFinished,
    ImageProgress,
    ImageRequest,
    LoadSpec,
)
from tests.oracle.images.adapters import AdapterFiles
from tests.oracle.images.stage import ImageStage, ServedImages
from tests.oracle.images.traffic import PlannedImages

MAX_CLIENTS = 12
MEAN_SWAP_GAP_SECONDS = 0.5
DRAIN_SECONDS = 0.05
NUM_VERSIONS = 2  # of each adapter
SEPARATOR = "-v"
REFUSALS = (
    AdapterBudgetError,
    AdapterBusyError,
    AdapterDrainingError,
    AdapterNotFoundError,
    AdapterUnloadedError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When a client leaves; None is never."""

    max_steps: int | None = None
    max_seconds: float | None = None


class Shelf:
    """Two versions of every adapter; a file is named by the id and the version's number."""

    def __init__(self, files: AdapterFiles, spec: ModelSpec) -> None:
        self._files = files
        self.names: dict[AdapterRef, str] = {}
        self.adapter_bytes = 0  # of one version of each
        for name, source in files.sources.items():
            adapter_id, _, version = name.rpartition(SEPARATOR)
            adapter = read_adapter(files.folder / source, spec, adapter_id)
            self.names[adapter.ref] = name
            self.adapter_bytes += adapter.num_bytes if version == "0" else 0

    @property
    def adapter_ids(self) -> list[str]:
        """The id of every adapter."""
        return sorted({ref.adapter_id for ref in self.names})

    def spec(self, adapter_id: str, version: int) -> LoadSpec:
        """Return what loads one version in the place of another."""
        source = self._files.sources[f"{adapter_id}{SEPARATOR}{version}"]
        return LoadSpec(adapter_id=adapter_id, source=source, replace=True)


class SoakClients:
    """Sends requests, a few at a time; whoever is refused goes away.

    Args:
        stage: Where to.
        shelf: What there is to load.
    """

    def __init__(self, stage: ImageStage, shelf: "Shelf") -> None:
        self._stage = stage
        self._shelf = shelf
        self._places = asyncio.Semaphore(MAX_CLIENTS)
        self.ends: Counter[str] = Counter()

    async def send(self, planned: PlannedImages, patience: Patience) -> ServedImages | None:
        """Return what a client got, with its adapters by version; None if that is not all."""
        async with self._places:
            try:
                async with asyncio.timeout(patience.max_seconds):
                    served = await self._load_and_read(planned, patience)
            except TimeoutError:
                self.ends["deadline"] += 1
            except REFUSALS as error:
                self.ends[type(error).__name__] += 1
            else:
                self.ends["finished" if served else "cancelled"] += 1
                return served
        return None

    async def reload(self, adapter_id: str) -> None:
        """Bring an adapter back that was unloaded."""
        with suppress(AdapterDrainingError):  # which it will not be for long
            await self._stage.registry.load(self._shelf.spec(adapter_id, 0))

    async def _load_and_read(
        self, planned: PlannedImages, patience: Patience
    ) -> ServedImages | None:
        """Send a request, loading what was unloaded before."""
        while True:
            try:
                return await self._read(planned, patience)
            except AdapterNotFoundError as error:
                await self.reload(error.adapter_id)

    async def _read(self, planned: PlannedImages, patience: Patience) -> ServedImages | None:
        generation: ImageGeneration | None = None
        latents: dict[int, Tensor] = {}
        finished: set[int] = set()
        async with aclosing(self._stage.generate(planned.request)) as events:
            async for event in events:
                if isinstance(event, ImageGeneration):
                    generation = event
                elif isinstance(event, GeneratedImage):
                    assert event.latents is not None
                    latents[event.index] = load(event.latents)["latents"]
                elif isinstance(event, ImageFinished):
                    finished.add(event.index)
                elif _is_too_long(event, patience):
                    return None
        assert generation is not None
        indices = list(range(planned.request.params.num_images))
        assert sorted(latents) == sorted(finished) == indices, "an image has no end"
        return ServedImages(
            planned=replace(planned, request=self._by_version(planned.request, generation)),
            apply=generation.apply,
            latents=[latents[index] for index in indices],
        )

    def _by_version(self, request: ImageRequest, generation: ImageGeneration) -> ImageRequest:
        """Return a request that names the versions that it got."""
        refs = [part.ref for part in generation.mix.parts]
        names = {ref.adapter_id: self._shelf.names[ref] for ref in refs}
        parts = [replace(p, adapter_id=names[p.adapter_id]) for p in request.adapters]
        schedules = [replace(s, adapter_id=names[s.adapter_id]) for s in request.schedules]
        return replace(request, adapters=tuple(parts), schedules=tuple(schedules))


def _is_too_long(event: ImageEvent, patience: Patience) -> bool:
    most = patience.max_steps
    return most is not None and isinstance(event, ImageProgress) and event.step >= most


class SoakOperator:
    """Replaces and unloads adapters at random times until an event is set."""

    def __init__(self, stage: ImageStage, shelf: Shelf, seed: int) -> None:
        self._stage = stage
        self._shelf = shelf
        self._draws = random.Random(seed)
        self.swaps: Counter[str] = Counter()

    async def swap_until(self, done: asyncio.Event) -> None:
        """Swap adapters until the event is set."""
        while not done.is_set():
            await asyncio.sleep(self._draws.expovariate(1 / MEAN_SWAP_GAP_SECONDS))
            await self._swap()

    async def _swap(self) -> None:
        adapter_id = self._draws.choice(self._shelf.adapter_ids)
        kind = self._draws.choice(["replace"] * 6 + ["unload"] * 2 + ["unload by force"])
        try:
            if kind == "replace":
                version = self._draws.randrange(NUM_VERSIONS)
                await self._stage.registry.load(self._shelf.spec(adapter_id, version))
            else:
                force = kind == "unload by force"
                await self._stage.registry.unload(
                    adapter_id, drain_seconds=DRAIN_SECONDS, force=force
                )
        except REFUSALS as error:
            kind += f" ({type(error).__name__})"
        self.swaps[kind] += 1

"""Stage: the real registry and image engine over one tiny pipeline, and clients that ask it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from safetensors.torch import load
from torch import Tensor, nn

from lokr_core import Apply, attach
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import AdapterSettings, ImageSettings, ModelSettings
from lokr_serve.image.engine import ImageEngine
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.load import load_pipeline
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.servicers.accepted import leased
from lokr_serve.types import GeneratedImage, ImageEvent, ImageRequest, LoadSpec
from tests.oracle.images.adapters import AdapterFiles
from tests.oracle.images.reference import row_digests
from tests.oracle.images.traffic import PlannedImages
from tests.oracle.images.trained import component
from tests.tiny.pipelines import save_pipeline

IMAGE = ImageSettings(max_requests=8, max_rows=12, max_queue=1000)

DtypeName = Literal["float32", "float64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """How much there is room for."""

    adapter_bytes: int = 2**30
    bank_bytes: int = 2**30
    merged_pipelines: int = 20  # in the merge cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedImages:
    """What a client got for a request."""

    planned: PlannedImages
    apply: Apply
    latents: Sequence[Tensor]  # of each image, [1, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the requests met on the device."""

    denoiser_calls: int
    rows_per_call: float
    mixes_per_call: float
    merges: int
    failed_steps: int


class ImageStage:
    """Registry and engine over the adapters of one family."""

    def __init__(
        self,
        files: AdapterFiles,
        folder: Path,
        dtype: DtypeName,
        budgets: Budgets = Budgets(),
    ) -> None:
        self._files = files
        self.metrics = Metrics(version="oracle")
        model = ModelSettings(path=save_pipeline(folder, files.family.name), dtype=dtype)
        self.loaded = load_pipeline(model)
        components = self.loaded.pipeline.components
        self.modules = {name: m for name, m in components.items() if isinstance(m, nn.Module)}
        num_bytes = sum(p.nbytes for module in self.modules.values() for p in module.parameters())
        self.adapted = attach(
            self.modules,
            merge_cache_bytes=budgets.merged_pipelines * num_bytes,
            bank_bytes=budgets.bank_bytes,
        )
        self.registry = AdapterRegistry(
            adapted=self.adapted,
            settings=AdapterSettings(directory=files.folder, device_bytes=budgets.adapter_bytes),
            metrics=self.metrics,
        )
        self.factory = PipelineFactory(self.loaded, IMAGE)
        self.engine = ImageEngine(
            adapted=self.adapted,
            factory=self.factory,
            loaded=self.loaded,
            settings=IMAGE,
            metrics=self.metrics,
        )
        self.rows: Counter[str] = Counter()  # digests of the latents that the denoiser was given
        component(self.loaded.pipeline, files.family.denoiser).register_forward_pre_hook(
            lambda _, args, kwargs: self.rows.update(row_digests(args, kwargs)), with_kwargs=True
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run the engine inside the block."""
        self.engine.start()
        try:
            yield self
        finally:
            await self.engine.stop()
            await self.registry.close()

    async def load_all(self) -> None:
        """Load every adapter."""
        for adapter_id, source in self._files.sources.items():
            await self.registry.load(LoadSpec(adapter_id=adapter_id, source=source))

    async def generate(
        self, request: ImageRequest
    ) -> AsyncGenerator[ImageGeneration | ImageEvent, None]:
        """Yield what the engine is given of a request, and the events of its images."""
        seed = request.params.seed
        assert seed is not None
        accepted_at = time.monotonic()
        plan = await asyncio.to_thread(self.factory.plan, request, seed)
        async with leased(self.registry, request.adapters, request.apply_mode) as lease:
            generation = ImageGeneration(
                request=request,
                plan=plan,
                mix=lease.mix,
                apply=lease.apply,
                accepted_at=accepted_at,
            )
            yield generation
            async with aclosing(self.engine.generate(generation)) as events:
                async for event in events:
                    yield event

    async def serve(self, requests: Sequence[PlannedImages]) -> list[ServedImages]:
        """Return what clients get who ask at the planned times."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            for planned in requests:
                await asyncio.sleep(planned.gap_seconds)
                tasks.append(group.create_task(self._serve(planned)))
        return [task.result() for task in tasks]

    async def _serve(self, planned: PlannedImages) -> ServedImages:
        apply, latents = Apply.UNMERGED, {}
        async with aclosing(self.generate(planned.request)) as events:
            async for event in events:
                if isinstance(event, ImageGeneration):
                    apply = event.apply
                elif isinstance(event, GeneratedImage):
                    assert event.latents is not None
                    latents[event.index] = load(event.latents)["latents"]
        assert sorted(latents) == list(range(planned.request.params.num_images))
        images = [latents[index] for index in sorted(latents)]
        return ServedImages(planned=planned, apply=apply, latents=images)

    def conditions(self) -> Conditions:
        """Return how the requests met."""

        def value(name: str) -> float:
            return self.metrics.registry.get_sample_value(f"lokr_serve_{name}") or 0.0

        num_calls = value("step_rows_count")
        return Conditions(
            denoiser_calls=int(num_calls),
            rows_per_call=round(value("step_rows_sum") / max(num_calls, 1), 2),
            mixes_per_call=round(value("step_mixes_sum") / max(num_calls, 1), 2),
            merges=int(value("merges_total")),
            failed_steps=int(value("step_failures_total")),
        )

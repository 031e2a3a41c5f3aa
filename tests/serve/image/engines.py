"""A running image engine over a tiny pipeline with adapters, and what comes out of it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import lokr_core
from lokr_core import Adapted, AdapterMix, Apply, LokrError
from lokr_serve.config import ImageSettings
from lokr_serve.image.engine import ImageEngine
from lokr_serve.image.families import family_of
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.image.plan import PipelineResult
from lokr_serve.image.tokenizers import serial_tokenizer
from lokr_serve.metrics import Metrics
from lokr_serve.types import (
    AdapterWeight,
    GeneratedImage,
    ImageEvent,
    ImageOutput,
    ImageParams,
    ImageRequest,
    WeightSchedule,
)
from tests.tiny.pipelines import make_pipeline

SIDE = 32  # pixels
LONG = 10.0  # seconds that no test waits for
_NAMES = {"unet": "unet", "transformer": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A pipeline with adapters on its denoiser and text encoders, and mixes of them."""

    loaded: LoadedPipeline
    adapted: Adapted
    mixes: tuple[AdapterMix, ...]  # the base, two adapters, and a mix of both

    @property
    def denoiser(self) -> nn.Module:
        """The shared module that all steps run."""
        found: nn.Module = self.loaded.pipeline.components[self.loaded.family.denoiser]
        return found


def build_world(folder: Path, name: str, dtype: torch.dtype = torch.float64) -> World:
    """Attach a tiny pipeline and add adapters that change it visibly."""
    pipeline = make_pipeline(name, dtype)
    for key, part in pipeline.components.items():
        if key.startswith("tokenizer") and part is not None:
            pipeline.register_modules(**{key: serial_tokenizer(part)})
    parts = pipeline.components
    adapted = lokr_core.attach(
        {k: part for k, part in parts.items() if isinstance(part, nn.Module)}
    )
    loaded = LoadedPipeline(family=family_of(type(pipeline).__name__), pipeline=pipeline)
    adapters = []
    for seed in (1, 2):
        path = folder / f"style-{seed}.safetensors"
        _write_lokr(path, loaded, seed)
        adapters.append(lokr_core.read_adapter(path, adapted.spec))
        adapted.add(adapters[-1])
    first, second = adapters
    mixes = (
        AdapterMix(),
        AdapterMix.of({first: 1.0}),
        AdapterMix.of({second: 0.5}),
        AdapterMix.of({first: 0.4, second: -0.3}),
    )
    return World(loaded=loaded, adapted=adapted, mixes=mixes)


def _write_lokr(path: Path, loaded: LoadedPipeline, seed: int) -> None:
    """Write a LoKr on attention and convolutions, named as kohya's scripts name modules."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for component in (loaded.family.denoiser, "text_encoder"):
        for name, module in loaded.pipeline.components[component].named_modules():
            if not _is_trained(name, module):
                continue
            num_out, num_in, *kernel = module.weight.shape
            stem = f"lora_{_NAMES[component]}_{name.replace('.', '_')}"
            w2 = torch.randn(num_out // 2, num_in // 2, *kernel, generator=generator)
            tensors[f"{stem}.lokr_w1"] = torch.randn(2, 2, generator=generator)
            tensors[f"{stem}.lokr_w2"] = 0.1 * w2
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    safetensors.torch.save_file(tensors, path)


def _is_trained(name: str, module: nn.Module) -> bool:
    is_linear = isinstance(module, nn.Linear) and ("attn" in name or "layers.0.mlp" in name)
    return is_linear or (isinstance(module, nn.Conv2d) and "resnets" in name)


def image_settings(**values: Any) -> ImageSettings:
    """Return settings that wait for every live request, however slow the machine is."""
    return ImageSettings(**{"gather_seconds": LONG, "max_requests": 8, **values})


def generation(
    world: World,
    seed: int = 1,
    mix: AdapterMix | None = None,
    apply: Apply = Apply.UNMERGED,
    *,
    schedules: Sequence[WeightSchedule] = (),
    output: Mapping[str, Any] | None = None,
    **params: Any,
) -> ImageGeneration:
    """Return a request for one small image in three steps, unless ``params`` say otherwise."""
    mix = AdapterMix() if mix is None else mix
    fields = {"width": SIDE, "height": SIDE, "num_steps": 3, **params}
    prompts = {key: fields.pop(key) for key in ("prompt", "negative_prompt") if key in fields}
    request = ImageRequest(
        **{"prompt": f"a cat, seen {seed} times", **prompts},
        request_id=f"request-{seed}",
        adapters=tuple(AdapterWeight(adapter_id=part.ref.adapter_id) for part in mix.parts),
        schedules=tuple(schedules),
        params=ImageParams(**fields),
        output=ImageOutput(**{"latents": True, **(output or {})}),
    )
    plan = PipelineFactory(world.loaded, image_settings()).plan(request, seed)
    return ImageGeneration(
        request=request, plan=plan, mix=mix, apply=apply, accepted_at=time.monotonic()
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What one request got."""

    events: list[ImageEvent] = field(default_factory=list)
    errors: list[LokrError] = field(default_factory=list)

    def of(self, kind: type[ImageEvent]) -> list[Any]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def images(self) -> list[GeneratedImage]:
        """The images, in order."""
        return self.of(GeneratedImage)

    @property
    def latents(self) -> Tensor:
        """The final latents of all images, in order."""
        assert not self.errors, self.errors
        loaded = [safetensors.torch.load(image.latents or b"") for image in self.images]
        return torch.cat([tensors["latents"] for tensors in loaded])


async def ask(engine: ImageEngine, request: ImageGeneration) -> Answer:
    """Send a request and collect its answer, or the error that it ended with."""
    answer = Answer()
    try:
        async for event in engine.generate(request):
            answer.events.append(event)
    except LokrError as error:
        answer.errors.append(error)
    return answer


async def ask_all(engine: ImageEngine, requests: Sequence[ImageGeneration]) -> list[Answer]:
    """Send requests at the same time, so that they share steps."""
    return list(await asyncio.gather(*(ask(engine, request) for request in requests)))


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    """Check that latents in float64 are equal up to its rounding."""
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-12)


def stock(world: World, request: ImageGeneration) -> PipelineResult:
    """Return what the stock pipeline makes of a request, without any engine."""
    run = PipelineFactory(world.loaded, image_settings()).build(request.plan, {})
    with world.adapted.using(request.mix, apply=request.apply.value):
        return run(lambda _: None)


@asynccontextmanager
async def running(
    world: World, metrics: Metrics | None = None, **settings: Any
) -> AsyncIterator[ImageEngine]:
    """Run an engine until the block ends."""
    engine = build(world, metrics, **settings)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def build(world: World, metrics: Metrics | None = None, **settings: Any) -> ImageEngine:
    """Return an engine that was not started."""
    chosen = image_settings(**settings)
    return ImageEngine(
        adapted=world.adapted,
        factory=PipelineFactory(world.loaded, chosen),
        loaded=world.loaded,
        settings=chosen,
        metrics=metrics or Metrics(version="test"),
    )


@contextmanager
def before_forward(module: nn.Module, call: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Call with the arguments of each forward before it runs, on the engine's thread."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args, "the engine passes every argument by name"
        call(kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds the first forward of a module until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self, _: Mapping[str, Any]) -> None:
        """Wait to be opened."""
        self.is_reached.set()
        assert self._opened.wait(LONG)

    def open(self) -> None:
        """Let all forwards through."""
        self._opened.set()

    async def reached(self) -> None:
        """Wait until a forward is held."""
        assert await asyncio.to_thread(self.is_reached.wait, LONG)


async def ask_together(engine: ImageEngine, requests: Sequence[ImageGeneration]) -> list[Answer]:
    """Send requests so that all are live before the first step runs."""
    gate = Gate()
    encoder = engine._loaded.pipeline.components["text_encoder"]
    with before_forward(encoder, gate):
        first = asyncio.create_task(ask(engine, requests[0]))
        await gate.reached()
        others = [asyncio.create_task(ask(engine, request)) for request in requests[1:]]
        await all_live(engine, len(requests))
        gate.open()
        return list(await asyncio.gather(first, *others))


async def all_live(engine: ImageEngine, count: int) -> None:
    """Wait until so many requests have a call that waits or runs."""
    gathering = engine._gathering

    def wait() -> None:
        with gathering._changed:
            found = gathering._changed.wait_for(
                lambda: len(gathering._waiting) + len(gathering._running) == count, LONG
            )
        assert found

    await asyncio.to_thread(wait)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return one value of the metrics."""
    found = metrics.registry.get_sample_value(f"lokr_serve_{name}", labels)
    assert found is not None, name
    return found

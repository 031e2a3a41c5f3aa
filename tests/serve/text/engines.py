"""A running text engine over a tiny model with real adapters, and what comes out of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import lokr_core
from lokr_core import Adapted, AdapterMix, Apply, LokrError
from lokr_serve.config import TextSettings
from lokr_serve.metrics import Metrics
from lokr_serve.text.engine import TextEngine
from lokr_serve.text.generation import Generation
from lokr_serve.types import Chunk, Finished, SamplingParams
from tests.tiny import peft_lokr, peft_lora, tiny_llama

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A float64 model with adapters, and mixes of them."""

    adapted: Adapted
    model: PreTrainedModel  # the adapted one
    mixes: tuple[AdapterMix, ...]  # the base, three adapters, and a mix of two


def build_world(folder: Path) -> World:
    """Attach a tiny Llama and add adapters that real trainers have made."""
    model = tiny_llama(torch.float64)
    adapted = lokr_core.attach(model)
    folders = [
        peft_lokr(tiny_llama, folder / "poet", seed=1),
        peft_lokr(tiny_llama, folder / "pirate", seed=2, decompose_both=True),
        peft_lora(tiny_llama, folder / "plain", seed=3),
    ]
    adapters = [lokr_core.read_adapter(path, adapted.spec) for path in folders]
    for adapter in adapters:
        adapted.add(adapter)
    poet, pirate, _ = adapters
    mixes = [AdapterMix.of({adapter: 0.5}) for adapter in adapters]
    both = AdapterMix.of({poet: 0.4, pirate: -0.3})
    return World(adapted=adapted, model=model, mixes=(AdapterMix(), *mixes, both))


def text_settings(**values: Any) -> TextSettings:
    """Return settings small enough that pages fill and prompts split."""
    return TextSettings(**{"page_tokens": 4, "cache_tokens": 1024, "max_step_tokens": 64, **values})


def generation(
    prompt_ids: Sequence[int],
    mix: AdapterMix | None = None,
    apply: Apply = Apply.UNMERGED,
    *,
    seed: int = 7,
    salt: str = "",
    **sampling: Any,
) -> Generation:
    """Return a request, greedy unless ``sampling`` says otherwise."""
    return Generation(
        request_id=f"request-{seed}",
        mix=AdapterMix() if mix is None else mix,
        apply=apply,
        prompt_ids=tuple(prompt_ids),
        sampling=SamplingParams(**{**GREEDY, **sampling}),
        seed=seed,
        accepted_at=time.monotonic(),
        salt=salt,
    )


def prompt(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Return token ids that a seed draws, none of them special or in the reserved range."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(4, 300, (num_tokens,), generator=generator).tolist()
    return tuple(ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What one request got, by sequence."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)
    errors: list[LokrError] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The tokens of the only sequence."""
        assert not self.errors, self.errors
        return self.tokens[0]

    @property
    def cached(self) -> int:
        """Prompt tokens of the only sequence that the prefix cache had."""
        return self.finished[0].usage.cached_prompt_tokens


async def ask(engine: TextEngine, request: Generation) -> Answer:
    """Send a request and collect its answer, or the error that it ended with."""
    answer = Answer()
    try:
        async for event in engine.generate(request):
            if isinstance(event, Finished):
                assert event.index not in answer.finished, "a sequence ends once"
                answer.finished[event.index] = event
            else:
                note(answer, event)
    except LokrError as error:
        answer.errors.append(error)
    return answer


def note(answer: Answer, chunk: Chunk) -> None:
    """Add a chunk to an answer."""
    answer.tokens.setdefault(chunk.index, []).extend(chunk.token_ids)
    answer.texts[chunk.index] = answer.texts.get(chunk.index, "") + chunk.text


async def ask_all(engine: TextEngine, requests: Sequence[Generation]) -> list[Answer]:
    """Send requests at the same time, so that they share steps."""
    return list(await asyncio.gather(*(ask(engine, request) for request in requests)))


async def ask_alone(adapted: Adapted, request: Generation, **settings: Any) -> Answer:
    """Return what a request gets from an engine of its own, with room to spare."""
    async with running(adapted, **settings) as engine:
        return await ask(engine, request)


def company(world: World, **sampling: Any) -> list[Generation]:
    """Return requests of every mix, with prompts of many lengths."""
    return [
        generation(prompt(seed, 3 + 5 * seed), mix, seed=seed, **sampling)
        for seed, mix in enumerate(world.mixes * 2)
    ]


async def alone(world: World, requests: list[Generation]) -> list[list[int]]:
    """Return the tokens of each request in an engine of its own."""
    answers = [await ask_alone(world.adapted, request) for request in requests]
    return [answer.ids for answer in answers]


@asynccontextmanager
async def running(
    adapted: Adapted,
    tokenizer: PreTrainedTokenizerFast | None = None,
    metrics: Metrics | None = None,
    **settings: Any,
) -> AsyncIterator[TextEngine]:
    """Run an engine until the block ends."""
    engine = TextEngine(
        adapted=adapted,
        tokenizer=tokenizer,
        settings=text_settings(**settings),
        metrics=metrics or Metrics(version="test"),
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@contextmanager
def before_forward(model: nn.Module, call: Callable[[list[int]], None]) -> Iterator[None]:
    """Call with the token ids of each forward before it runs, on the engine's thread."""

    def hook(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids: Tensor = kwargs["input_ids"]
        call(ids.flatten().tolist())

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return one value of the metrics."""
    found = metrics.registry.get_sample_value(f"lokr_serve_{name}", labels)
    assert found is not None, name
    return found

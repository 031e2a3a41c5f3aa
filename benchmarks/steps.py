"""steps: the slowest steps of the engine while adapters load, against those while none does."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
from transformers import LlamaForCausalLM

from benchmarks.engines import TEXT, Serving, random_prompt, serving
from benchmarks.figures import Claim, Figure, at_most
from benchmarks.harness import Samples, quantile_ratio
from benchmarks.models import MODEL_20M, build_model
from benchmarks.scope import Scope
from benchmarks.store import Store, write_store
from benchmarks.streams import greedy
from lokr_core import AdapterMix, Apply
from lokr_serve.text.batching import BatchRow, PagedBatch
from lokr_serve.text.sampling import SamplerRow

Value = TypeVar("Value")

NUM_ROWS = 16
NUM_PROMPT_TOKENS = 8  # few, so that one step prefills all rows
QUANTILE = 0.99


class _Steps:
    """16 rows with an adapter each, stepped on a thread of their own."""

    def __init__(self, side: Serving, mixes: Sequence[AdapterMix]) -> None:
        self._mixes = mixes
        self._vocab = side.engine.prompt_limits.vocab_size
        self._batch = PagedBatch(side.adapted, TEXT)
        self._row_ids = count()
        self._draw = random.Random(0)
        self._rows: list[str] = []

    def start_over(self) -> None:
        """Give every row a new prompt, so that windows have contexts of the same lengths."""
        for row_id in self._rows:
            self._batch.remove(row_id)
        self._rows = [str(next(self._row_ids)) for _ in self._mixes]
        for row_id, mix in zip(self._rows, self._mixes, strict=True):
            self._batch.add(self._row(row_id, mix))
        self._batch.step()

    def run(self, is_over: Callable[[int], bool]) -> Samples:
        """Step until it is over after so many; return the seconds of each step."""
        seconds: list[float] = []
        while not seconds or not is_over(len(seconds)):
            began = time.perf_counter()
            self._batch.step()
            seconds.append(time.perf_counter() - began)
        return np.array(seconds)

    def _row(self, row_id: str, mix: AdapterMix) -> BatchRow:
        prompt_ids = random_prompt(self._draw, self._vocab, NUM_PROMPT_TOKENS)
        sampler = SamplerRow(
            params=greedy(1), seed=0, prompt_ids=prompt_ids, output_ids=(), end_ids=frozenset()
        )
        return BatchRow(
            row_id=row_id,
            token_ids=prompt_ids,
            mix=mix,
            apply=Apply.UNMERGED,
            salt="",
            sampler=sampler,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Windows:
    """Windows of steps, with and without loads."""

    side: Serving
    steps: _Steps
    thread: ThreadPoolExecutor  # the engine's; banks belong to the thread that made them
    ids: Sequence[str]  # to be loaded

    async def quiet(self, num_steps: int) -> Samples:
        """Return the seconds of steps while nothing is loaded."""
        await self._call(self.steps.start_over)
        return await self._call(partial(self.steps.run, lambda done: done >= num_steps))

    async def loading(self) -> Samples:
        """Return the seconds of the steps that begin while the adapters are loaded."""
        await self._call(self.steps.start_over)
        is_over = threading.Event()
        stepping = self._call(partial(self.steps.run, lambda _: is_over.is_set()))
        try:
            await self.side.load(self.ids)
        finally:
            is_over.set()
        seconds = await stepping
        for adapter_id in self.ids:
            await self.side.registry.unload(adapter_id, drain_seconds=0, force=False)
        return seconds

    def _call(self, call: Callable[[], Value]) -> asyncio.Future[Value]:
        return asyncio.get_running_loop().run_in_executor(self.thread, call)


def run(scope: Scope) -> list[Figure]:
    """Measure windows in turns: one in which adapters load, and one in which none does."""
    num_loads = scope.count(300, 10)
    model = build_model(scope.size(MODEL_20M))
    store = write_store(scope.folder, model, NUM_ROWS + num_loads)
    quiet, loading = asyncio.run(_measure(model, store, scope.num_pairs))
    medians = tuple(float(np.quantile(np.concatenate(w), QUANTILE)) for w in (quiet, loading))
    num_steps = sum(map(len, loading))
    claim = Claim(
        name=f"99th percentile of step time while {num_loads} adapters load",
        against="steps without loads",
        target=at_most(1.5),
    )
    ratio = quantile_ratio(quiet, loading, QUANTILE)
    milliseconds = medians[0] * 1e3, medians[1] * 1e3
    note = f"{num_steps:,} steps on each side, {store.factor_bytes / 1e3:,.0f} kB an adapter"
    return [claim.figure(ratio, milliseconds, num_pairs=scope.num_pairs, note=note)]


async def _measure(
    model: LlamaForCausalLM, store: Store, num_pairs: int
) -> tuple[list[Samples], list[Samples]]:
    """Return the seconds of each step, by window, without and with loads."""
    quiet: list[Samples] = []
    loading: list[Samples] = []
    with ThreadPoolExecutor(1) as thread:
        async with serving(model, store.root) as side, _leases(side, store) as mixes:
            steps = await asyncio.get_running_loop().run_in_executor(
                thread, lambda: _Steps(side, mixes)
            )
            windows = _Windows(side=side, steps=steps, thread=thread, ids=store.ids[NUM_ROWS:])
            num_steps = len(await windows.loading())  # a warm-up
            for pair in range(num_pairs):
                if pair % 2:
                    quiet.append(await windows.quiet(num_steps))
                loading.append(await windows.loading())
                num_steps = len(loading[-1])
                if not pair % 2:
                    quiet.append(await windows.quiet(num_steps))
    return quiet, loading


@asynccontextmanager
async def _leases(side: Serving, store: Store) -> AsyncIterator[list[AdapterMix]]:
    """Hold one adapter for each row."""
    async with AsyncExitStack() as stack:
        ids = store.ids[:NUM_ROWS]
        leases = [await stack.enter_async_context(side.lease(adapter_id)) for adapter_id in ids]
        yield [lease.mix for lease in leases]

"""A cancelled request holds on to what it uses until the engine has dropped it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
import pytest_asyncio
from torch import nn

from lokr_core import AdapterMix, Apply, attach
from lokr_serve.config import TextSettings
from lokr_serve.errors import DeadlineError, EngineStoppedError
from lokr_serve.metrics import Metrics
from lokr_serve.text import Generation, TextEngine
from lokr_serve.types import Priority, SamplingParams
from tests.tiny import tiny_llama


class Turnstile:
    """Holds the engine inside a forward while it is shut."""

    def __init__(self, model: nn.Module) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        model.register_forward_pre_hook(lambda *_: self._pass())

    def _pass(self) -> None:
        self.entered.set()
        assert self.opened.wait(30)


class Scene:
    """A running engine whose steps a turnstile holds, and a client that reads from it."""

    def __init__(self) -> None:
        model = tiny_llama()
        self.turnstile = Turnstile(model)
        settings = TextSettings(page_tokens=8, cache_tokens=512, max_rows=1)
        self.engine = TextEngine(
            adapted=attach(model), tokenizer=None, settings=settings, metrics=Metrics(version="t")
        )
        self.engine.start()

    async def read(self, began: list[str] | None = None, name: str = "", **fields: Any) -> None:
        """Read a request to its end, short if ``began`` is to get its name once it has begun."""
        began, max_tokens = ([], 100) if began is None else (began, 5)
        generation = Generation(
            request_id="r",
            mix=AdapterMix(),
            apply=Apply.UNMERGED,
            prompt_ids=(4, 5, 6),
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            seed=0,
            accepted_at=time.monotonic(),
            **fields,
        )
        async with aclosing(self.engine.generate(generation, lambda: began.append(name))) as events:
            async for _ in events:
                pass

    async def read_until_step(self) -> asyncio.Task[None]:
        """Return a client's task once the engine is inside a step for it."""
        task = asyncio.create_task(self.read())
        await asyncio.to_thread(self.turnstile.entered.wait, 30)
        return task


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    """A running engine."""
    scene = Scene()
    yield scene
    scene.turnstile.opened.set()
    await scene.engine.stop()


async def test_a_cancelled_request_ends_after_the_step_that_computes_it(scene: Scene) -> None:
    """Its adapters are given back when it ends, and the step still reads them."""
    task = await scene.read_until_step()

    for _ in range(2):  # a client that leaves, and a server that is told to stop
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
    scene.turnstile.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_request_can_be_cancelled_while_the_engine_stops(scene: Scene) -> None:
    """The engine answers for every request it had, also for one that is leaving."""
    task = await scene.read_until_step()
    stopped = asyncio.create_task(scene.engine.stop())
    await asyncio.sleep(0)

    task.cancel()
    scene.turnstile.opened.set()

    await stopped
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_requests_end_with_the_engine(scene: Scene) -> None:
    """Once the engine has ended there is no step to wait for."""
    task = await scene.read_until_step()
    scene.turnstile.opened.set()

    await scene.engine.stop()

    with pytest.raises(EngineStoppedError):
        await task


async def test_a_request_is_told_when_it_has_its_row(scene: Scene) -> None:
    """It counts as waiting until then, and no longer, however long its first step takes."""
    began: list[str] = []
    await scene.read_until_step()
    tasks = [
        asyncio.create_task(scene.read(began, "low", priority=Priority.LOW)),
        asyncio.create_task(scene.read(began, "high", priority=Priority.HIGH)),
    ]
    await asyncio.sleep(0)
    began_while_shut = list(began)
    scene.turnstile.opened.set()
    await asyncio.gather(*tasks)

    assert began_while_shut == []
    assert began == ["high", "low"]


async def test_a_request_whose_deadline_passes_in_line_is_never_begun(scene: Scene) -> None:
    """Nobody waits for it any more, and those behind it do."""
    began: list[str] = []
    first = await scene.read_until_step()
    late = asyncio.create_task(
        scene.read(began, "late", deadline=time.monotonic(), priority=Priority.HIGH)
    )
    behind = asyncio.create_task(scene.read(began, "behind"))
    await asyncio.sleep(0)
    scene.turnstile.opened.set()

    with pytest.raises(DeadlineError):
        await late
    await asyncio.gather(first, behind)
    assert began == ["behind"]


async def test_a_request_that_is_cancelled_in_line_is_never_begun(scene: Scene) -> None:
    """As when its deadline has the call cancelled."""
    began: list[str] = []
    first = await scene.read_until_step()
    waiting = asyncio.create_task(scene.read(began, "cancelled"))
    await asyncio.sleep(0)
    waiting.cancel()
    scene.turnstile.opened.set()
    with suppress(asyncio.CancelledError):
        await waiting
    await first

    assert began == []


async def test_clients_share_the_engine_alike(scene: Scene) -> None:
    """Whoever sends many requests waits behind itself."""
    began: list[str] = []
    await scene.read_until_step()
    tasks = [
        asyncio.create_task(scene.read(began, name, client=name))
        for name in ["busy"] * 4 + ["quiet"]
    ]
    await asyncio.sleep(0)
    scene.turnstile.opened.set()
    await asyncio.gather(*tasks)

    assert began.index("quiet") <= 1


async def test_a_client_is_not_charged_for_what_came_too_late(scene: Scene) -> None:
    """Else whoever has lost a request waits longer for the next, and loses that one, too."""
    began: list[str] = []
    await scene.read_until_step()
    late = asyncio.create_task(scene.read([], client="unlucky", deadline=time.monotonic()))
    tasks = [
        asyncio.create_task(scene.read(began, name, client=name)) for name in ("unlucky", "other")
    ]
    await asyncio.sleep(0)
    scene.turnstile.opened.set()
    await asyncio.gather(*tasks)

    with pytest.raises(DeadlineError):
        await late
    assert began == ["unlucky", "other"]

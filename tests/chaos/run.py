"""Run: lives of the server in rounds of chaos, each round with a quiet moment after it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.chaos.actors.asking import ask
from tests.chaos.actors.declaring import declare
from tests.chaos.actors.fetching import change_mood, crowd_disk, fetch
from tests.chaos.actors.intruders import babble, crowd
from tests.chaos.actors.operating import operate
from tests.chaos.actors.strangers import (
    flood,
    hold_uploads,
    knock,
    read_slowly,
    reset_rapidly,
    send_too_much,
)
from tests.chaos.actors.uploading import upload
from tests.chaos.actors.witness import WITNESS, witness
from tests.chaos.disk import small_disk
from tests.chaos.logs import faults_in_log
from tests.chaos.outcomes import QUEUE_FULL
from tests.chaos.place import build_place
from tests.chaos.report import LifeReport, Report, Totals
from tests.chaos.round import Round, Scene
from tests.chaos.server import Life, Server
from tests.chaos.storage import half_files, leftovers
from tests.chaos.store import environment, store
from tests.chaos.waiting import place_of
from tests.chaos.watch import Watch

Actor = Callable[[Round], Awaitable[None]]

ALWAYS: Sequence[Actor] = (
    *(ask,) * 6,
    *(operate, operate, upload, upload, fetch, change_mood, declare, witness),
)
AT_TIMES: Sequence[Actor] = (
    *(flood, reset_rapidly, read_slowly, send_too_much, knock, hold_uploads),
    *(babble, crowd, crowd_disk),
)
LAST_CALLS_SECONDS = 75.0  # more than any call may take
MAX_REFUSED_SHARE = 0.05  # of the calls of a client that behaves, and is in a hurry
STRUCK = ("load", "fetch", "upload", "upload, cut")  # calls in which a process is killed


class End(Enum):
    """How a life of the server ends, always in the middle of a round."""

    KILLED = "killed"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifePlan:
    """How long a process of the server lives, and how it ends."""

    num_rounds: int  # each followed by a quiet moment; another one is cut short by the end
    end: End


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a round is, and how many others play beside those that always do."""

    seconds: float
    nums_guests: Sequence[int] = (2, 3, len(AT_TIMES))  # drawn from


class Run:
    """One server over one place, through many lives."""

    def __init__(self, scene: Scene, server: Server, *, seed: int, pace: Pace) -> None:
        self._scene = scene
        self._server = server
        self._seed = seed
        self._pace = pace
        self._draws = random.Random(seed)
        self._lives: list[LifeReport] = []
        self._totals = Totals()
        self._began_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it runs already."""
        return time.monotonic() - self._began_at

    async def live(self, plan: LifePlan) -> None:
        """Start a process, and see it through to its end."""
        life = await self._server.start()
        watch = Watch(life, self._scene.place)
        try:
            await self._begin(life)
            for _ in range(plan.num_rounds):
                await self._play(self._round(life), self._pace.seconds)
                if life.is_dead:
                    break
                await watch.look_until_quiet(self._round(life))
                life.num_rounds += 1
            if not life.is_dead:
                await self._finish(life, plan.end)
        finally:
            await life.close()
        for fault in faults_in_log(life.log):
            self._scene.ledger.violate("error in the log", f"life {life.number}: {fault}")
        if self._draws.random() < 0.5:
            self._scene.declarations.write(self._draws)  # while nobody looks
        self._note(life, plan.end, watch)

    def report(self) -> Report:
        """Return what was found until now."""
        ledger = self._scene.ledger
        for fault in self._neglect():
            ledger.violate("neglect", fault)
        return Report(
            seed=self._seed,
            seconds=round(self.seconds, 1),
            num_tokens_compared=self._scene.truth.num_tokens,
            ends=ledger.ends,
            totals=dict(self._totals.counts),
            lives=self._lives,
            num_violations=ledger.num_violations,
            violations=ledger.violations,
            skipped=ledger.skipped,
        )

    def _neglect(self) -> Iterator[str]:
        """Say whether the client that behaves was refused too often."""
        ledger = self._scene.ledger
        num_refused, num_ended = ledger.num_ended(WITNESS, QUEUE_FULL), ledger.num_ended(WITNESS)
        if num_refused > MAX_REFUSED_SHARE * num_ended:
            yield f"the witness was refused {num_refused} times of {num_ended}"

    def _round(self, life: Life) -> Round:
        draws = random.Random(self._draws.getrandbits(64))
        return Round(scene=self._scene, life=life, draws=draws)

    async def _begin(self, life: Life) -> None:
        """Check that a process starts with what the files say, and nothing else."""
        scene = self._scene
        scene.shelf.restart(scene.declarations.versions)
        adapters = [adapter async for adapter in life.user.list_adapters()]
        found = {adapter.adapter_id for adapter in adapters}
        faults = [*scene.declarations.faults(adapters)]
        if found != {*scene.place.lasting, *scene.declarations.adapters}:
            faults.append(f"has {sorted(found)}")
        for fault in (*faults, *leftovers(scene.place), *half_files(scene.place)):
            scene.ledger.violate("wrong start", f"life {life.number}: {fault}")

    async def _play(self, round_: Round, seconds: float) -> None:
        """Let every actor play for a while, and come to its end."""
        async with self._playing(round_):
            await self._watch_process(round_, seconds)

    async def _finish(self, life: Life, end: End) -> None:
        """End a process in the middle of a round."""
        round_ = self._round(life)
        async with self._playing(round_):
            await self._watch_process(round_, self._draws.uniform(0.5, 1.0) * self._pace.seconds)
            if life.is_dead:
                return
            if end is End.KILLED:
                await round_.moment_of(self._draws.choice(STRUCK))
                await life.kill()
            elif code := await life.terminate():
                what = f"life {life.number} ended with code {code}"
                self._scene.ledger.violate("bad end", what)

    @asynccontextmanager
    async def _playing(self, round_: Round) -> AsyncIterator[None]:
        """Let the actors play while the block runs, and wait until their last calls have ended."""
        actors = (*ALWAYS, *self._guests())
        tasks = [asyncio.create_task(_run(actor, round_)) for actor in actors]
        try:
            yield
        finally:
            round_.over.set()
            _, late = await asyncio.wait(tasks, timeout=LAST_CALLS_SECONDS)
            for task in late:
                round_.scene.ledger.violate("a call without an end", place_of(task))
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    def _guests(self) -> Sequence[Actor]:
        """Choose who else plays: all, or a few of them, who then have more time."""
        return self._draws.sample(AT_TIMES, self._draws.choice(self._pace.nums_guests))

    async def _watch_process(self, round_: Round, seconds: float) -> None:
        life = round_.life
        with suppress(TimeoutError):
            code = await asyncio.wait_for(life.process.wait(), seconds)
            life.is_ending = True
            what = f"life {life.number} ended by itself with code {code}"
            round_.scene.ledger.violate("death", what)

    def _note(self, life: Life, end: End, watch: Watch) -> None:
        looks = watch.looks
        if looks:
            self._totals.add(looks[-1].samples)
        self._lives.append(
            LifeReport(
                start_seconds=life.start_seconds,
                num_rounds=life.num_rounds,
                end=end.value,
                num_files=[look.held.num_files for look in looks],
                num_threads=[look.held.num_threads for look in looks],
                resident_mib=[look.held.resident_bytes >> 20 for look in looks],
            )
        )


async def _run(actor: Actor, round_: Round) -> None:
    await actor(round_)


@asynccontextmanager
async def prepared(folder: Path, *, seed: int, pace: Pace) -> AsyncIterator[Run]:
    """Make all that a run needs, and take it down after the block."""
    with small_disk(folder / "disk") as disk:
        place = build_place(folder, disk)
        async with store(place.adapters, seed) as proxy:
            scene = Scene(place, proxy, seed)
            scene.declarations.write(scene.draws)
            server = Server(place.write_settings(), folder, environment(proxy))
            yield Run(scene, server, seed=seed, pace=pace)

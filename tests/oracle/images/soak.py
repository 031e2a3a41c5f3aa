"""Soak: images for hours, after which nothing may be held, lost or changed.

``python -m tests.oracle.images.soak --images 1000`` prints one line of JSON for each family.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from tests.oracle.images.adapters import AdapterFiles, write_adapters
from tests.oracle.images.report import ImageVerdict, judge
from tests.oracle.images.soak_clients import (
    NUM_VERSIONS,
    SEPARATOR,
    Patience,
    Shelf,
    SoakClients,
    SoakOperator,
)
from tests.oracle.images.stage import Budgets, ImageStage, ServedImages
from tests.oracle.images.traffic import ImageTraffic, PlannedImages
from tests.oracle.images.trained import FAMILIES, ImageFamily
from tests.oracle.soak import weights_digest

SOAKED = ("stable-diffusion", "flux")  # a UNet and a transformer
KINDS = ("peft-lokr", "peft-dora", "lycoris-lokr", "diffusers-lora")
ROOM_SHARE = 1.0  # of the bytes of one version of each adapter
WARM_UP_SHARE = 0.3  # of the requests
SAMPLE_SHARE = 0.1  # of the finished requests
MAX_GROWTH_BYTES = 32 * 2**20


@dataclass(slots=True, kw_only=True)
class ImageSoakReport:
    """What was asked for, and what was left after it."""

    family: str
    digest_before: str
    digest_after: str = ""
    ends: dict[str, int] = field(default_factory=dict)  # of requests
    swaps: dict[str, int] = field(default_factory=dict)
    evictions: int = 0
    merges: int = 0
    failed_steps: int = 0
    growth_bytes: int = 0  # of the process since it was warm
    leaks: list[str] = field(default_factory=list)
    verdict: ImageVerdict = field(default_factory=ImageVerdict)

    @property
    def has_passed(self) -> bool:
        """Whether nothing was held, lost or changed."""
        return (
            self.digest_before == self.digest_after
            and not (self.leaks or self.failed_steps or self.verdict.differences)
            and self.growth_bytes <= MAX_GROWTH_BYTES
        )


class ImageSoak:
    """One family's pipeline under random requests and swaps."""

    def __init__(
        self, family: ImageFamily, folder: Path, *, kinds: Sequence[str] = KINDS, seed: int
    ) -> None:
        self._seed = seed
        self._files = write_versions(family, folder / "adapters", kinds, seed)
        probe = ImageStage(self._files, folder / "model", "float32")
        adapter_bytes = Shelf(self._files, probe.adapted.spec).adapter_bytes
        probe.adapted.detach()
        budgets = Budgets(
            adapter_bytes=int(ROOM_SHARE * adapter_bytes),
            bank_bytes=adapter_bytes // 2,
            merged_pipelines=4,
        )
        self.stage = ImageStage(self._files, folder / "model", "float32", budgets)
        self.shelf = Shelf(self._files, self.stage.adapted.spec)
        self.report = ImageSoakReport(family=family.name, digest_before=self._digest())
        self._sample: list[ServedImages] = []

    def run(self, num_requests: int) -> None:
        """Serve so many requests, and look at what is left of them."""
        before = Resources.now()
        asyncio.run(self._run(num_requests))
        self._count(before)

    async def _run(self, num_requests: int) -> None:
        changes = {i: self._files.changes[f"{i}{SEPARATOR}0"] for i in self.shelf.adapter_ids}
        requests = ImageTraffic(self._files.family, changes, self._seed).requests(
            range(num_requests)
        )
        async with self.stage.running():
            await self._serve(requests)
            await self._unload_all()

    def judge(self) -> None:
        """Compare a sample of the images with those made alone."""
        rows = self.stage.rows
        self.report.verdict = judge(self._files, "float32", self._sample, rows)
        self.report.digest_after = self._digest()

    async def _serve(self, requests: Sequence[PlannedImages]) -> None:
        clients = SoakClients(self.stage, self.shelf)
        operator = SoakOperator(self.stage, self.shelf, self._seed)
        for adapter_id in self.shelf.adapter_ids:
            await clients.reload(adapter_id)
        draws, done = random.Random(self._seed), asyncio.Event()
        num_warm = int(WARM_UP_SHARE * len(requests))
        async with asyncio.TaskGroup() as group:
            group.create_task(operator.swap_until(done))
            await self._send(clients, requests[:num_warm], draws)
            warm_bytes = resident_bytes()
            await self._send(clients, requests[num_warm:], draws)
            self.report.growth_bytes = resident_bytes() - warm_bytes
            done.set()
        self.report.ends, self.report.swaps = dict(clients.ends), dict(operator.swaps)

    async def _send(
        self, clients: SoakClients, requests: Sequence[PlannedImages], draws: random.Random
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for planned in requests:
                await asyncio.sleep(planned.gap_seconds)
                is_kept = draws.random() < SAMPLE_SHARE
                group.create_task(self._ask(clients, planned, _patience(draws), is_kept=is_kept))

    async def _ask(
        self, clients: SoakClients, planned: PlannedImages, patience: Patience, *, is_kept: bool
    ) -> None:
        served = await clients.send(planned, patience)
        if served is not None and is_kept:
            self._sample.append(served)

    async def _unload_all(self) -> None:
        """Unload every adapter without force, which a lease that was not given back prevents."""
        registry = self.stage.registry
        for status in registry.list():
            await registry.unload(status.adapter_id, drain_seconds=0.0, force=False)
        if self.stage.adapted.merges.num_bytes:
            self.report.leaks.append("merged weights of adapters that are gone")

    def _count(self, before: "Resources") -> None:
        value = self.stage.metrics.registry.get_sample_value
        after, report = Resources.now(), self.report
        report.evictions = int(
            value("lokr_serve_adapter_evictions_total", {"reason": "budget"}) or 0
        )
        report.merges = int(value("lokr_serve_merges_total") or 0)
        report.failed_steps = int(value("lokr_serve_step_failures_total") or 0)
        for gauge in ("requests_waiting", "requests_running"):
            if value(f"lokr_serve_{gauge}"):
                report.leaks.append(f"{gauge} is not 0")
        if after.threads - before.threads:
            report.leaks.append(f"threads {sorted(after.threads - before.threads)}")
        if after.num_files > before.num_files:
            report.leaks.append(f"{after.num_files - before.num_files} file descriptors")

    def _digest(self) -> str:
        return weights_digest(nn.ModuleDict(self.stage.modules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a process holds."""

    threads: frozenset[str]
    num_files: int

    @classmethod
    def now(cls) -> "Resources":
        """Return what this process holds now."""
        return cls(
            threads=frozenset(thread.name for thread in threading.enumerate()),
            num_files=len(list(Path("/proc/self/fd").iterdir())),
        )


def resident_bytes() -> int:
    """Return what this process has in memory."""
    gc.collect()
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def write_versions(
    family: ImageFamily, folder: Path, kinds: Sequence[str], seed: int
) -> AdapterFiles:
    """Have the trainers write two versions of each adapter."""
    files = AdapterFiles(family=family, folder=folder, sources={}, changes={})
    for version in range(NUM_VERSIONS):
        part = write_adapters(family, folder / str(version), kinds, seed + version)
        for kind in kinds:
            name = f"{kind}{SEPARATOR}{version}"
            files.sources[name] = f"{version}/{part.sources[kind]}"
            files.changes[name] = part.changes[kind]
    return files


def _patience(draws: random.Random) -> Patience:
    """Let a tenth of the clients leave after some steps, and a tenth after some time."""
    share = draws.random()
    return Patience(
        max_steps=draws.randint(1, 3) if share < 0.1 else None,
        max_seconds=draws.uniform(0, 0.3) if 0.1 <= share < 0.2 else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON for each family; 0 if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.images.soak", description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="over all families")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append", help="of files, else all")
    given = parser.parse_args(arguments)
    has_passed = True
    for index, name in enumerate(SOAKED):
        began_at = time.monotonic()
        num_images = len(range(index, given.images, len(SOAKED)))
        with TemporaryDirectory() as folder:
            run = ImageSoak(
                FAMILIES[name], Path(folder), kinds=given.kind or KINDS, seed=given.seed
            )
            run.run(num_images)
            run.judge()
        report = run.report
        seconds = round(time.monotonic() - began_at, 1)
        line = {"passed": report.has_passed, "seconds": seconds}
        sys.stdout.write(json.dumps(line | asdict(report)) + "\n")
        sys.stdout.flush()
        has_passed = has_passed and report.has_passed
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())

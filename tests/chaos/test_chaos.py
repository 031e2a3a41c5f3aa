"""A short run of the chaos."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.run import AT_TIMES, End, LifePlan, Pace, prepared

SEED = 7
PACE = Pace(seconds=2.5, nums_guests=(len(AT_TIMES),))


def test_nothing_is_wrong_lost_or_left_behind(tmp_path: Path) -> None:
    """A server is killed under everything at once, started again over its files, and stopped."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")

    async def live() -> Report:
        async with prepared(tmp_path, seed=SEED, pace=PACE) as run:
            await run.live(LifePlan(num_rounds=0, end=End.KILLED))
            await run.live(LifePlan(num_rounds=1, end=End.TERMINATED))
            return run.report()

    report = asyncio.run(live())

    assert report.violations == [], json.dumps(asdict(report), indent=2)
    assert report.num_tokens_compared > 0
    assert report.totals["adapter_evictions"] > 0
    assert report.ends["load"]["OK"] > 0
    assert report.ends["witness"]["OK"] > 0

"""The long run: ``python -m tests.chaos --minutes 15 --seed 1``."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.chaos.report import Report
from tests.chaos.run import End, LifePlan, Pace, prepared

ROUND_SECONDS = 12.0
LIFE_ROUNDS = (1, 2, 3, 6)  # chosen from, but for one life that takes a third of the time


async def run(folder: Path, *, minutes: float, seed: int) -> Report:
    """Let processes live and die for so long."""
    draws = random.Random(seed)
    num_rounds = max(1, round(minutes * 60 / 3 / ROUND_SECONDS))
    async with prepared(folder, seed=seed, pace=Pace(seconds=ROUND_SECONDS)) as chaos:
        while chaos.seconds < minutes * 60:
            await chaos.live(LifePlan(num_rounds=num_rounds, end=draws.choice(list(End))))
            num_rounds = draws.choice(LIFE_ROUNDS)
        return chaos.report()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a report as JSON; 0 if nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder), minutes=given.minutes, seed=given.seed))
    line = {"passed": found.has_passed, "minutes": given.minutes, **asdict(found)}
    sys.stdout.write(json.dumps(line, indent=2) + "\n")
    return 0 if found.has_passed else 1


if __name__ == "__main__":
    sys.exit(main())

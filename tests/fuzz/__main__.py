"""The long run: ``python -m tests.fuzz --cases 100000 --seed 1``; fails on any finding."""

import argparse
import faulthandler
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.fuzz.runner import Fuzzer
from tests.fuzz.seeds import base_spec, make_seeds

BATCH = 1000  # cases
HANG_SECONDS = 300  # for a batch; it prints where it hangs, on standard error, and ends
MAX_SHOWN = 20
MEMORY = Path("/dev/shm")  # a folder in memory: most of the time went into writing files


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each finding, then one line of JSON; 0 if there was no finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    num_findings, seconds, grown_kib = 0, 0.0, 0
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        work = Path(folder, "work")
        work.mkdir()
        seeds = make_seeds(Path(folder))
        fuzzer = Fuzzer(spec=base_spec(), seeds=seeds, folder=work, seed=given.seed)
        for first in range(given.first, given.first + given.cases, BATCH):
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=2)
            report = fuzzer.run(min(BATCH, given.first + given.cases - first), first)
            outcomes += report.outcomes
            seconds += report.seconds
            grown_kib += report.grown_kib
            for finding in report.findings[: max(0, MAX_SHOWN - num_findings)]:
                sys.stdout.write(json.dumps(asdict(finding)) + "\n")
            num_findings += len(report.findings)
        faulthandler.cancel_dump_traceback_later()
    line = {
        "findings": num_findings,
        "cases": given.cases,
        "cases_per_second": round(given.cases / seconds),
        "grown_kib": grown_kib,
        "good_files": f"{len(fuzzer.good)} of {len(seeds)}",
        "outcomes": dict(outcomes.most_common()),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())

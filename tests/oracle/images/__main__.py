"""The long run: ``python -m tests.oracle.images --requests 400 --seed 1 --dtype float32``."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from tests.oracle.images.peers import KINDS, kinds_of
from tests.oracle.images.report import DTYPES, report_images
from tests.oracle.images.trained import FAMILIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON for each family; 0 if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.images", description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="over all families")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="else all")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="of files, else all")
    given = parser.parse_args(arguments)
    families = [FAMILIES[name] for name in given.family or FAMILIES]
    has_passed = True
    for index, family in enumerate(families):
        began_at = time.monotonic()
        # The first ones take what does not divide.
        num_requests = len(range(index, given.requests, len(families)))
        kinds = [kind for kind in kinds_of(family) if not given.kind or kind in given.kind]
        numbers = range(num_requests)
        report = report_images(family, kinds, given.dtype, numbers=numbers, seed=given.seed)
        seconds = round(time.monotonic() - began_at, 1)
        line = {"passed": report.has_passed, "dtype": given.dtype, "seconds": seconds}
        sys.stdout.write(json.dumps(line | asdict(report)) + "\n")
        sys.stdout.flush()
        has_passed = has_passed and report.has_passed
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""The long run: ``python -m tests.parity --seeds 10``, the matrix again over fresh factors."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.parity.compare import errors_of
from tests.parity.layers import LAYERS
from tests.parity.matrix import CASES
from tests.parity.report import Tally, worst_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was compared, and what is off; 0 if nothing is."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how often each case is drawn anew")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args(arguments)
    tally, has_passed = Tally(), True
    for case in CASES:
        if given.only not in case.name:
            continue
        for seed in range(given.seeds):
            with TemporaryDirectory() as folder:
                errors = list(errors_of(case, LAYERS[case.layer], Path(folder), seed=seed))
            tally.count(case.algorithm, case.layer, worst_of(errors), len(errors))
            for error in errors:
                if not error.is_small:
                    has_passed = False
                    sys.stdout.write(f"{case.name}, seed {seed}: {error}\n")
    sys.stdout.write("\n".join(tally.lines()) + "\n")
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())

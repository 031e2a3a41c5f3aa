"""The long run: ``python -m tests.oracle --requests 500 --seed 1 --dtype float64``."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.oracle.peers import ARCHITECTURES, Peers
from tests.oracle.report import report_logits, report_tokens

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON for each architecture; 0 if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--requests", type=int, default=500, help="over all architectures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float64",
        help="float64 compares the tokens of served requests, float32 the logits of batches",
    )
    given = parser.parse_args(arguments)
    has_passed = True
    for index, architecture in enumerate(ARCHITECTURES):
        began_at = time.monotonic()
        # The first ones take what does not divide.
        num_requests = len(range(index, given.requests, len(ARCHITECTURES)))
        with TemporaryDirectory() as folder:
            peers = Peers(architecture, Path(folder), DTYPES[given.dtype])
            if given.dtype == "float64":
                tokens = report_tokens(
                    architecture, peers, num_requests=num_requests, seed=given.seed
                )
                line, passed = asdict(tokens), tokens.has_passed
            else:
                logits = report_logits(architecture, peers, num_rows=num_requests, seed=given.seed)
                line, passed = asdict(logits), logits.has_passed
        seconds = round(time.monotonic() - began_at, 1)
        text = json.dumps({"passed": passed, "dtype": given.dtype, "seconds": seconds, **line})
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        has_passed = has_passed and passed
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())

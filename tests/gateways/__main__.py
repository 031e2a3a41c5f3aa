"""The long run: ``python -m tests.gateways --gateway envoy --seconds 60 --restarts 9``."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.gateways.affinity import wait_settled
from tests.gateways.load import Outcome
from tests.gateways.programs import Gateway, Kind, program
from tests.gateways.rollout import roll
from tests.gateways.stage import ADAPTER_IDS, running_stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Restart replicas in turn under load, and print one line of JSON; 0 if no call failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gateways", description=__doc__)
    parser.add_argument(
        "--gateway",
        action="append",
        choices=[kind.value for kind in Kind],
        help="may be repeated; all that are installed if it is not given",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, at least")
    parser.add_argument("--restarts", type=int, default=9, help="of replicas, one after the other")
    given = parser.parse_args(arguments)
    kinds = [Kind(name) for name in given.gateway or [k.value for k in Kind if program(k)]]
    began_at = time.monotonic()
    with (
        TemporaryDirectory() as folder,
        running_stage(Path(folder)) as stage,
        ExitStack() as stack,
    ):
        gateways = [
            stack.enter_context(stage.gateway(kind, number, stage.fleet.hosts))
            for number, kind in enumerate(kinds)
        ]
        for gateway in gateways:
            wait_settled(gateway, stage.fleet)
        outcomes = roll(
            stage.fleet,
            gateways,
            ADAPTER_IDS,
            num_restarts=given.restarts,
            min_seconds=given.seconds,
        )
        line = {
            "restarts": given.restarts,
            "seconds": round(time.monotonic() - began_at, 1),
            "gateways": {g.kind.value: _report(g, outcomes) for g in gateways},
        }
    sys.stdout.write(json.dumps(line) + "\n")
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


def _report(gateway: Gateway, outcomes: Mapping[Kind, Outcome]) -> dict[str, object]:
    """Return what came of the calls, and what the gateway's log says of their attempts."""
    outcome = outcomes[gateway.kind]
    return {
        "complete_streams": outcome.num_streams,
        "unary_calls": outcome.num_unary,
        "failures": dict(outcome.failures),
        "longest_without_an_end_seconds": round(outcome.max_gap_seconds, 2),
        "statuses_in_its_log": dict(gateway.statuses()),
    }


if __name__ == "__main__":
    sys.exit(main())

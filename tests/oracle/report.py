"""Report: what a run of the oracle found, in one architecture and one dtype."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lokr_core import Apply
from tests.oracle.clients import Answer
from tests.oracle.logits import compare_logits
from tests.oracle.peers import Architecture, Peers
from tests.oracle.run import Conditions, Run, serve
from tests.oracle.verdict import Judge, Verdict

LOGIT_TOLERANCE = 1e-4  # of the largest logit, in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """Tokens of served requests, compared with the peers'."""

    architecture: str
    num_adapters: int
    num_requests: int
    kinds: dict[str, int]
    ends: dict[str, int]
    verdict: Verdict
    conditions: Conditions

    @property
    def has_passed(self) -> bool:
        """Whether nothing differed and no step failed."""
        return not self.verdict.differences and not self.conditions.failed_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitReport:
    """Logits of mixed batches, compared with the peers'."""

    architecture: str
    num_rows: int
    max_error: float  # of the largest logit

    @property
    def has_passed(self) -> bool:
        """Whether the logits are close enough."""
        return self.max_error <= LOGIT_TOLERANCE


def judge(peers: Peers, answers: Sequence[Answer]) -> Verdict:
    """Return the verdict on answers."""
    judge = Judge(peers)
    for answer in answers:
        judge.compare(answer)
    return judge.verdict


def report_tokens(
    architecture: Architecture, peers: Peers, *, num_requests: int, seed: int
) -> TokenReport:
    """Serve random requests in float64 and compare their tokens."""
    run: Run = asyncio.run(serve(architecture, peers, num_requests=num_requests, seed=seed))
    return TokenReport(
        architecture=architecture.name,
        num_adapters=len(peers.files),
        num_requests=len(run.answers),
        kinds=dict(Counter(kind for answer in run.answers for kind in _kinds(answer))),
        ends=dict(Counter(answer.end for answer in run.answers)),
        verdict=judge(peers, run.answers),
        conditions=run.conditions,
    )


def _kinds(answer: Answer) -> list[str]:
    request = answer.request
    way = "base" if not request.parts else "merged" if answer.apply is Apply.MERGED else "unmerged"
    return [
        way,
        "greedy" if request.sampling.is_greedy else "sampled",
        *(["mix"] if len(request.parts) > 1 else []),
        *(["negative weight"] if any(part.weight < 0 for part in request.parts) else []),
    ]


def report_logits(
    architecture: Architecture, peers: Peers, *, num_rows: int, seed: int
) -> LogitReport:
    """Compare the logits of random mixed batches in float32."""
    max_error = compare_logits(architecture, peers, torch.float32, num_rows=num_rows, seed=seed)
    return LogitReport(architecture=architecture.name, num_rows=num_rows, max_error=max_error)

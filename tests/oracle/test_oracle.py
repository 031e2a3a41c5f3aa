"""A short seeded run of the oracle, and proof that it would notice a mistake."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lokr_serve.text.batching import BatchRow
from tests.oracle.__main__ import main
from tests.oracle.clients import Answer
from tests.oracle.peers import ARCHITECTURES, GPT2, Architecture, Peers
from tests.oracle.report import judge, report_logits, report_tokens
from tests.oracle.run import serve

SEED = 7
BOTH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)


@BOTH
def test_served_tokens_are_those_of_the_trainers_models(
    tmp_path: Path, architecture: Architecture
) -> None:
    """Mixes, batches, swaps, cancellations and preemptions leave no trace in anyone's tokens."""
    peers = Peers(architecture, tmp_path, torch.float64)

    report = report_tokens(architecture, peers, num_requests=40, seed=SEED)

    assert report.verdict.differences == []
    assert report.verdict.num_close_calls == 0
    assert report.verdict.num_tokens > 200
    assert report.conditions.failed_steps == 0


@BOTH
def test_logits_of_mixed_batches_are_those_of_the_trainers_models(
    tmp_path: Path, architecture: Architecture
) -> None:
    """In float32 tokens may fall either way, so the logits themselves are compared."""
    peers = Peers(architecture, tmp_path, torch.float32)

    report = report_logits(architecture, peers, num_rows=60, seed=SEED)

    assert report.has_passed, report


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    """What the trainers make of the smaller of the two."""
    return Peers(GPT2, tmp_path_factory.mktemp("adapters"), torch.float64)


@pytest.fixture(scope="module")
def answers(peers: Peers) -> Sequence[Answer]:
    """Right answers of some length, each from adapters."""
    run = asyncio.run(serve(GPT2, peers, num_requests=40, seed=SEED))
    return [a for a in run.answers if a.files and len(a.sequences[0].token_ids) > 2]


def with_wrong_weight(answer: Answer, _: Peers) -> Answer:
    """Say that an answer is of weights that are a little larger."""
    parts = tuple(replace(part, weight=1.01 * part.weight) for part in answer.request.parts)
    return replace(answer, request=replace(answer.request, parts=parts))


def with_wrong_version(answer: Answer, peers: Peers) -> Answer:
    """Say that an answer is of the other version of each adapter."""
    files = {
        name: next(other for other in peers.files[name] if other is not file)
        for name, file in answer.files.items()
    }
    return replace(answer, files=files)


def with_wrong_seed(answer: Answer, _: Peers) -> Answer:
    """Say that an answer was drawn, by its log-probabilities and all, from another seed."""
    return replace(answer, request=replace(answer.request, seed=answer.request.seed ^ 1))


def with_lost_end(answer: Answer, _: Peers) -> Answer:
    """Say that a client read to the end, but no end came."""
    sequences = [replace(sequence, finished=None) for sequence in answer.sequences]
    return replace(answer, sequences=sequences, end="finished")


@pytest.mark.parametrize(
    ("spoil", "min_share"),
    [
        (with_wrong_weight, 0.3),
        (with_wrong_version, 0.8),
        (with_wrong_seed, 0.2),
        (with_lost_end, 1.0),
    ],
)
def test_a_mistake_is_noticed(
    peers: Peers,
    answers: Sequence[Answer],
    spoil: Callable[[Answer, Peers], Answer],
    min_share: float,
) -> None:
    """An oracle that cannot say no proves nothing; some mistakes happen not to show in a token."""
    spoilt = [spoil(answer, peers) for answer in answers]

    num_noticed = sum(bool(judge(peers, [answer]).differences) for answer in spoilt)

    assert judge(peers, answers).differences == []
    assert num_noticed >= min_share * len(spoilt)


def test_a_prefix_that_two_mixes_share_is_noticed(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traffic must be such that a fault of the server shows, not of the judge alone."""
    monkeypatch.setattr(BatchRow, "namespace", property(lambda _: b"one for all"))

    report = report_tokens(GPT2, peers, num_requests=40, seed=SEED)

    assert not report.has_passed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_command_prints_a_line_for_each_architecture(
    capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    """The long run is read by people and by programs."""
    status = main(["--requests", "6", "--dtype", dtype])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [line["architecture"] for line in lines] == ["llama", "gpt2"]
    assert all(line["passed"] for line in lines)

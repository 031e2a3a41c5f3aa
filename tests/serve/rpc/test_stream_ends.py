"""How streams end when something happens to them: always in one status, and nothing leaks."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from torch import Tensor
from transformers import LlamaForCausalLM

from lokr_serve.client import (
    ClientError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from lokr_serve.types import (
    AdapterWeight,
    Chunk,
    Finished,
    GenerationRequest,
    SamplingParams,
    Started,
    TextPrompt,
    TokenPrompt,
)
from tests.serve.running import Connection, connected, running_server, tiny_settings
from tests.tiny import VOCAB_SIZE

PROMPT = TextPrompt(text="The quick brown fox")
POET = AdapterWeight(adapter_id="poet")


def request(max_tokens: int = 8000, *adapters: AdapterWeight) -> GenerationRequest:
    """Return a request that runs for long unless it is told to be short."""
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(prompt=PROMPT, adapters=adapters, sampling=sampling)


def read_chunks(stream: Iterator[object], num_chunks: int) -> None:
    """Read until so many chunks have come: the request runs."""
    for _ in range(num_chunks):
        while not isinstance(next(stream), Chunk):
            pass


def wait_until_free(server: Connection) -> None:
    """Wait until no request holds the adapter; unloading waits for just that."""
    server.admin.unload_adapter("poet", drain_seconds=20)


@pytest.fixture
def server(model_folder: Path, adapter_folder: Path) -> Iterator[Connection]:
    """A server of this test's own, with one row and two places to wait."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        text={"max_rows": 1, "max_queue": 2, "cache_tokens": 16384},
        server={"drain_seconds": 5.0},
    )
    with (
        running_server(settings) as running,
        connected(running.ready.result()) as connection,
    ):
        yield connection


def test_a_full_queue_says_when_to_come_again(server: Connection) -> None:
    """The request that does not fit is refused at once; the others are served."""
    running = server.client.generate(request(8000, POET))
    read_chunks(running, 3)
    waiting = [server.client.generate(request(3)) for _ in range(2)]
    for stream in waiting:
        next(stream)

    with pytest.raises(ClientError) as caught:
        list(server.client.generate(request()))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_seconds is not None
    assert 0.5 <= caught.value.retry_seconds <= 75
    running.close()
    assert all(isinstance(list(stream)[-1], Finished) for stream in waiting)


def test_a_client_that_leaves_in_decode_frees_its_row(server: Connection) -> None:
    """The next request gets the row at once, and the adapter can be unloaded."""
    stream = server.client.generate(request(8000, POET))
    read_chunks(stream, 1)
    stream.close()
    wait_until_free(server)

    assert isinstance(list(server.client.generate(request(3)))[-1], Finished)


def test_a_client_that_leaves_in_prefill_frees_its_row(server: Connection) -> None:
    """A long prompt must not be worked off for nobody."""
    long = GenerationRequest(
        prompt=TokenPrompt(ids=(5,) * 8000), adapters=(POET,), sampling=SamplingParams(max_tokens=5)
    )
    stream = server.client.generate(long)
    next(stream)
    stream.close()
    wait_until_free(server)

    assert isinstance(list(server.client.generate(request(3)))[-1], Finished)


def test_a_deadline_in_the_middle_ends_the_stream_and_frees_the_row(server: Connection) -> None:
    """What came until then is the client's; the rest is not computed."""
    stream = server.client.generate(request(8000, POET), timeout_seconds=2)

    assert isinstance(next(stream), Started)
    with pytest.raises(DeadlineExceededError):
        list(stream)
    wait_until_free(server)


def test_a_stopping_server_lets_streams_finish(model_folder: Path) -> None:
    """A rollout costs no request that can end in time."""
    with running_server(tiny_settings(model_folder)) as running:
        with connected(running.ready.result()) as connection:
            stream = connection.client.generate(request(100))
            next(stream)
            running.stop()
            *_, last = stream
        running.ended.result(30)

    assert isinstance(last, Finished)


def test_a_stopping_server_ends_streams_that_take_too_long(model_folder: Path) -> None:
    """They end in a status that sends the client elsewhere."""
    settings = tiny_settings(model_folder, server={"drain_seconds": 0.2})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        stream = connection.client.generate(request())
        next(stream)
        running.stop()

        with pytest.raises(UnavailableError) as caught:
            list(stream)
        assert caught.value.reason == "SHUTTING_DOWN"


def tokens(events: Iterable[object]) -> list[int]:
    """Return all tokens of a stream, which must have finished."""
    *chunks, last = events
    assert isinstance(last, Finished)
    return [token for c in chunks if isinstance(c, Chunk) for token in c.token_ids]


def test_a_step_that_fails_once_costs_no_stream_a_token(
    shared_server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong for a moment is tried again, from prompt and emitted tokens."""
    failures = [RuntimeError("injected")]
    forward = LlamaForCausalLM.forward

    def fail_once(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return forward(self, *args, **kwargs)

    seeded = SamplingParams(max_tokens=400, seed=3, ignore_eos=True)
    requests = [
        GenerationRequest(prompt=PROMPT, adapters=adapters, sampling=seeded)
        for adapters in ((), (POET,))
    ]
    alone = [tokens(shared_server.client.generate(request)) for request in requests]
    streams = [shared_server.client.generate(request) for request in requests]
    begun = [[next(stream) for _ in range(3)] for stream in streams]  # both run from here on
    monkeypatch.setattr(LlamaForCausalLM, "forward", fail_once)

    assert [tokens([*b, *stream]) for b, stream in zip(begun, streams, strict=True)] == alone
    assert not failures


def test_a_request_that_cannot_run_fails_alone(
    shared_server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poisoned request must not take the others, or the server, with it."""
    forward = LlamaForCausalLM.forward

    healthy = GenerationRequest(
        prompt=PROMPT, sampling=SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    )
    alone = tokens(shared_server.client.generate(healthy))
    poison = next(token for token in range(10, VOCAB_SIZE) if token not in alone)
    poisoned = GenerationRequest(
        prompt=TokenPrompt(ids=(5, poison)), sampling=SamplingParams(max_tokens=40)
    )

    def fail_on_poison(self: LlamaForCausalLM, input_ids: Tensor, **kwargs: Any) -> Any:
        if (input_ids == poison).any():
            raise RuntimeError("injected")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail_on_poison)
    stream = shared_server.client.generate(healthy)
    next(stream)

    with pytest.raises(InternalError) as caught:
        list(shared_server.client.generate(poisoned))
    assert caught.value.reason == "GENERATION_FAILED"
    assert "injected" not in str(caught.value)
    assert tokens(stream) == alone

"""Text through the wire, from request to final status."""

import pytest

from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    FinishReason,
    GenerationRequest,
    Prompt,
    SamplingParams,
    Started,
    TextPrompt,
    TokenPrompt,
)
from lokr_serve.v1.text_pb2 import GenerateRequest
from tests.serve.running import Connection
from tests.tiny import VOCAB_SIZE

PROMPT = TextPrompt(text="The quick brown fox")
POET = AdapterWeight(adapter_id="poet")
PIRATE = AdapterWeight(adapter_id="pirate", weight=-0.5)
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def test_a_stream_starts_with_started_and_ends_with_finished(shared_server: Connection) -> None:
    """Clients know what they get before the first token, and that they got it all."""
    request = GenerationRequest(prompt=PROMPT, sampling=GREEDY, request_id="r-1")
    started, *chunks, finished = shared_server.client.generate(request)

    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert started.request_id == "r-1"
    tokens = [token for chunk in chunks if isinstance(chunk, Chunk) for token in chunk.token_ids]
    assert len(tokens) == 8 == finished.usage.completion_tokens
    assert finished.reason is FinishReason.MAX_TOKENS
    assert finished.usage.prompt_tokens == started.prompt_tokens > 0
    assert 0 <= finished.timing.queue_seconds <= finished.timing.total_seconds


def test_one_reply_holds_what_the_stream_would(shared_server: Connection) -> None:
    """The unary form is for callers without streams; it must not be another generation."""
    sampling = SamplingParams(max_tokens=12, seed=7, n=2, logprobs=2, ignore_eos=True)
    request = GenerationRequest(prompt=PROMPT, adapters=(POET,), sampling=sampling)
    events = list(shared_server.client.generate(request))
    whole = shared_server.client.generate_once(request)

    for index in range(2):
        chunks = [event for event in events if isinstance(event, Chunk) and event.index == index]
        assert whole.chunks[index].text == "".join(chunk.text for chunk in chunks)
        assert list(whole.chunks[index].token_ids) == [t for c in chunks for t in c.token_ids]
        assert len(whole.chunks[index].logprobs) == len(whole.chunks[index].token_ids)
        assert whole.finished[index].index == index
    assert whole.text == whole.chunks[0].text


def test_started_tells_the_mix_as_it_was_resolved(shared_server: Connection) -> None:
    """A caller can log which version of which adapter answered, and how."""
    request = GenerationRequest(prompt=PROMPT, adapters=(POET, PIRATE), sampling=GREEDY)
    started = shared_server.client.generate_once(request).started
    versions = {id_: shared_server.admin.get_adapter(id_).version for id_ in ("poet", "pirate")}

    assert started.mix_name == "pirate*-0.5+poet"
    assert [(a.adapter_id, a.version, a.weight) for a in started.adapters] == [
        ("pirate", versions["pirate"], -0.5),
        ("poet", versions["poet"], 1.0),
    ]
    assert started.apply_mode in (ApplyMode.UNMERGED, ApplyMode.MERGED)


@pytest.mark.parametrize("mode", [ApplyMode.UNMERGED, ApplyMode.MERGED])
def test_a_pinned_way_of_application_is_kept(shared_server: Connection, mode: ApplyMode) -> None:
    """Who pins a way wants its numbers, not the server's choice."""
    request = GenerationRequest(prompt=PROMPT, adapters=(POET,), sampling=GREEDY, apply_mode=mode)

    assert shared_server.client.generate_once(request).started.apply_mode is mode


def test_no_adapter_is_the_base_model(shared_server: Connection) -> None:
    """An empty mix has no name and changes nothing; an adapter does."""
    base = shared_server.client.generate_once(GenerationRequest(prompt=PROMPT, sampling=GREEDY))
    poet = shared_server.client.generate_once(
        GenerationRequest(prompt=PROMPT, sampling=GREEDY, adapters=(POET,))
    )

    assert (base.started.mix_name, base.started.adapters) == ("", ())
    assert base.chunks[0].token_ids != poet.chunks[0].token_ids


def test_a_weight_of_zero_leaves_the_adapter_out(shared_server: Connection) -> None:
    """Fading an adapter out must end at the base model."""
    off = AdapterWeight(adapter_id="poet", weight=0)
    base = GenerationRequest(prompt=PROMPT, sampling=GREEDY)
    faded = GenerationRequest(prompt=PROMPT, sampling=GREEDY, adapters=(off,))
    client = shared_server.client

    assert client.generate_once(faded).started.mix_name == ""
    assert client.generate_once(faded).chunks == client.generate_once(base).chunks


def test_a_seed_is_drawn_and_told_unless_it_is_given(shared_server: Connection) -> None:
    """Any result can be asked for again, whether or not its caller thought of a seed."""
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    drawn = shared_server.client.generate_once(GenerationRequest(prompt=PROMPT, sampling=sampling))
    seeded = SamplingParams(max_tokens=8, ignore_eos=True, seed=drawn.started.seed)
    again = shared_server.client.generate_once(GenerationRequest(prompt=PROMPT, sampling=seeded))

    assert again.started.seed == drawn.started.seed
    assert again.chunks == drawn.chunks


@pytest.mark.parametrize(
    "prompt",
    [
        TokenPrompt(ids=(0, 40, 41, 42)),
        ChatPrompt(messages=(ChatMessage(role="user", content="Hello"),)),
    ],
)
def test_prompts_come_in_every_form(shared_server: Connection, prompt: Prompt) -> None:
    """Token ids are for callers with their own tokenizer, chats for instruction-tuned models."""
    whole = shared_server.client.generate_once(GenerationRequest(prompt=prompt, sampling=GREEDY))

    assert len(whole.chunks[0].token_ids) == 8
    assert all(token < VOCAB_SIZE for token in whole.chunks[0].token_ids)


def test_an_id_in_the_metadata_names_a_request_without_one(shared_server: Connection) -> None:
    """Gateways set it for callers that do not."""
    (started, *_) = shared_server.text.Generate(
        GenerateRequest(text="x"), metadata=(("x-request-id", "from-gateway"),)
    )

    assert started.started.request_id == "from-gateway"


def test_two_requests_may_carry_the_same_id(shared_server: Connection) -> None:
    """Ids are the callers' names; who reuses one must not end another's stream."""
    request = GenerationRequest(prompt=PROMPT, sampling=GREEDY, request_id="same")
    first = shared_server.client.generate(request)
    second = shared_server.client.generate(request)

    assert [type(next(first)), type(next(second))] == [Started, Started]
    assert len(list(first)) > 1
    assert len(list(second)) > 1

"""Text of streams of tokens."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lokr_serve.text.detokenize import MAX_OPEN, MAX_WINDOW_TOKENS, REPLACEMENT, Detokenizer
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

BYTE_LEVEL = tiny_tokenizer()
TEXTS = st.text(st.sampled_from("ab é東京🙂🚀\n"), max_size=40)
IDS = st.lists(st.integers(0, VOCAB_SIZE + 1), max_size=60)  # special and unknown ones among them


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 2's: leading spaces in the tokens, bytes for rare signs."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "▁Hello", "▁world", "lo", "a", "b", "\n"]
    vocabulary = [(piece, -9.0) for piece in pieces] + [(word, -1.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SENTENCEPIECE = sentencepiece_like()


def byte_ids(text: bytes) -> list[int]:
    """Return the tokens of SENTENCEPIECE that stand for single bytes."""
    return [2 + byte for byte in text]


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode without special tokens."""
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def pieces_of(
    tokenizer: PreTrainedTokenizerFast, prompt: list[int], completion: list[int]
) -> list[str]:
    """Return what each push gave, and as the last piece what finish gave."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token_id) for token_id in completion), detokenizer.finish()]


def text_in_context(
    tokenizer: PreTrainedTokenizerFast, prompt: list[int], completion: list[int]
) -> str:
    """Return what the completion adds to the prompt's text when both are decoded at once."""
    before = tokenizer.backend_tokenizer.decode(prompt)
    both = tokenizer.backend_tokenizer.decode(prompt + completion)
    if not both.startswith(before):  # the completion has mended the prompt's last character
        before = before.rstrip(REPLACEMENT)
    return both[len(before) :]


@settings(max_examples=200)
@given(prompt=IDS, completion=IDS)
@example(prompt=[301], completion=[121, 98, 130])
@example(prompt=[], completion=[159] * 60)
def test_random_byte_level_tokens_add_up_to_the_text_in_context(
    prompt: list[int], completion: list[int]
) -> None:
    """A model at high temperature emits any bytes; none may be lost, doubled or moved."""
    pieces = pieces_of(BYTE_LEVEL, prompt, completion)

    assert "".join(pieces) == text_in_context(BYTE_LEVEL, prompt, completion)


@settings(max_examples=100)
@given(text=TEXTS, cut=st.integers(0, 200), tokenizer=st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]))
def test_text_streams_in_whole_characters_from_any_token_on(
    text: str, cut: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A prompt may end anywhere, even inside a character, when a client goes on from token ids."""
    ids = ids_of(tokenizer, text)
    prompt, completion = ids[:cut], ids[cut:]
    before = tokenizer.backend_tokenizer.decode(prompt)
    whole = tokenizer.backend_tokenizer.decode(ids)

    pieces = pieces_of(tokenizer, prompt, completion)

    assert REPLACEMENT not in "".join(pieces)
    if not before.endswith(REPLACEMENT):
        assert "".join(pieces) == whole[len(before) :]
    assert whole.endswith("".join(pieces))


def test_character_of_several_tokens_comes_with_its_last_one() -> None:
    """Half a character on the wire would be a replacement sign at the client."""
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        prompt = ids_of(tokenizer, "a")
        completion = ids_of(tokenizer, "a🚀")[len(prompt) :]

        pieces = pieces_of(tokenizer, prompt, completion)

        assert len(completion) > 1
        assert pieces == [""] * (len(completion) - 1) + ["🚀", ""]


def test_leading_space_of_the_first_word_is_kept_after_a_prompt() -> None:
    """Decoders of this kind strip it from what they take for the start of a text."""
    hello = ids_of(SENTENCEPIECE, "Hello")

    assert pieces_of(SENTENCEPIECE, [], [*hello, *hello]) == ["Hello", " Hello", ""]
    assert pieces_of(SENTENCEPIECE, hello, hello) == [" Hello", ""]
    assert pieces_of(SENTENCEPIECE, [*hello, *[1] * 40], hello) == [" Hello", ""]


def test_unfinished_character_is_given_out_at_the_end() -> None:
    """Nothing is dropped: the client sees that something was there."""
    half = ids_of(BYTE_LEVEL, "🚀")[:-1]

    assert pieces_of(BYTE_LEVEL, ids_of(BYTE_LEVEL, "a"), half) == [""] * len(half) + [REPLACEMENT]


def test_special_tokens_have_no_text() -> None:
    """They steer the model; a client that wants them reads the token ids."""
    completion = [2, *ids_of(BYTE_LEVEL, "ab"), 3, 1]

    assert "".join(pieces_of(BYTE_LEVEL, [0], completion)) == "ab"


def test_broken_bytes_do_not_stop_the_stream_nor_change_what_was_sent() -> None:
    """A run of byte tokens with a wrong one decodes to nothing but replacement signs."""
    completion = [
        *byte_ids("東".encode()),
        *byte_ids(b"\xe4"),
        *ids_of(SENTENCEPIECE, "Hello"),
        *byte_ids("東".encode()),
        *byte_ids(b"\xff\xff\xff\xff\xff"),
        *ids_of(SENTENCEPIECE, "world"),
    ]

    text = "".join(pieces_of(SENTENCEPIECE, [], completion))

    assert text == f"東{REPLACEMENT} Hello東{REPLACEMENT * 5} world"


def test_stream_that_ends_in_a_changed_run_is_flushed() -> None:
    """What was sent stays; the rest is decoded by itself."""
    completion = [*byte_ids("東".encode()), *byte_ids(b"\xe4")]

    assert "".join(pieces_of(SENTENCEPIECE, [], completion)) == f"東{REPLACEMENT}"


def test_run_of_bytes_that_is_broken_at_its_start_stays_broken() -> None:
    """Its last bytes alone would be good text, but that is not what the whole decodes to."""
    completion = [*byte_ids(b"\xff" + b"A" * 60), *ids_of(SENTENCEPIECE, "Hello")]

    text = "".join(pieces_of(SENTENCEPIECE, [], completion))

    assert text == text_in_context(SENTENCEPIECE, [], completion)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE])
def test_cost_of_a_token_stays_bounded(tokenizer: PreTrainedTokenizerFast) -> None:
    """Neither a long text nor endless broken bytes or special tokens may make the window grow."""
    streams = [ids_of(tokenizer, "Hello 東京🙂 " * 30), [1] * 300]
    streams += [[2 + 0x80] * 300, [200] * 300]
    for stream in streams:
        detokenizer = Detokenizer(tokenizer, [])
        for token_id in stream:
            detokenizer.push(token_id)

            assert len(detokenizer._window) <= MAX_WINDOW_TOKENS + MAX_OPEN


def test_without_a_tokenizer_there_is_no_text() -> None:
    """Such a model is served with token ids alone."""
    detokenizer = Detokenizer(None, [1, 2, 3])

    assert [detokenizer.push(5), detokenizer.push(6), detokenizer.finish()] == ["", "", ""]

"""Tokenizers for many threads, and counting a prompt's tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lokr_serve.image.tokenizers import serial_tokenizer
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a real fast tokenizer that can pad."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_a_stand_in_looks_like_its_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Stock pipelines read attributes, call methods and check classes."""
    stand_in = serial_tokenizer(tokenizer)

    assert isinstance(stand_in, PreTrainedTokenizerFast)
    assert isinstance(stand_in, PreTrainedTokenizerBase)
    assert stand_in.__class__.__name__ == type(tokenizer).__name__
    assert len(stand_in) == len(tokenizer)
    assert stand_in.model_max_length == tokenizer.model_max_length
    assert stand_in.tokenize("a fox") == tokenizer.tokenize("a fox")
    assert stand_in("a fox")["input_ids"] == tokenizer("a fox")["input_ids"]
    messages = [{"role": "user", "content": "a fox"}]
    assert stand_in.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    ids = [[5, 6], [7]]
    assert stand_in.batch_decode(ids) == tokenizer.batch_decode(ids)
    assert stand_in.added_tokens_encoder == tokenizer.added_tokens_encoder


def test_a_stand_in_keeps_its_tokenizer_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    """One request must not change how the others' prompts are read."""
    stand_in = serial_tokenizer(tokenizer)

    with pytest.raises(AttributeError):
        stand_in.padding_side = "left"

    assert tokenizer.padding_side == "right"


def test_what_a_tokenizer_lacks_its_stand_in_lacks(tokenizer: PreTrainedTokenizerFast) -> None:
    """Pipelines ask whether an attribute is there."""
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = serial_tokenizer(tokenizer).no_such_thing


def test_many_threads_may_share_a_stand_in(tokenizer: PreTrainedTokenizerFast) -> None:
    """A fast tokenizer alone raises "Already borrowed", or pads with another call's length."""
    stand_in = serial_tokenizer(tokenizer)

    def encode(index: int) -> int:
        length = 8 + index % 32
        batch = stand_in(
            "a quick brown fox " * 40, padding="max_length", truncation=True, max_length=length
        )
        whole = stand_in("a fox", padding="longest")
        assert whole["input_ids"] == plain
        return len(batch["input_ids"]) - length

    plain = tokenizer("a fox")["input_ids"]
    with ThreadPoolExecutor(16) as pool:
        differences = set(pool.map(encode, range(400)))

    assert differences == {0}

"""Prompts: what becomes of them, and what is refused in which words."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lokr_serve.errors import InvalidRequestError, ModelError
from lokr_serve.text.prompt import (
    MAX_BYTES_PER_TOKEN,
    ROLES,
    PromptEncoder,
    PromptLimits,
    load_tokenizer,
)
from lokr_serve.types import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

BOS_ID = 0
LIMITS = PromptLimits(vocab_size=VOCAB_SIZE, max_prompt_tokens=40)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh one: some tests change its template."""
    return tiny_tokenizer()


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> PromptEncoder:
    """An encoder for a model of 40 tokens of prompt."""
    return PromptEncoder(tokenizer, LIMITS)


def chat(*turns: tuple[str, str]) -> ChatPrompt:
    """Return a conversation of (role, content) pairs."""
    return ChatPrompt(
        messages=tuple(ChatMessage(role=role, content=content) for role, content in turns)
    )


def refusal(encoder: PromptEncoder, prompt: Prompt) -> tuple[str, str]:
    """Return the field and the problem with which a prompt is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        encoder.encode(prompt)
    return caught.value.field, caught.value.problem


def test_text_gets_the_special_tokens_of_the_tokenizer(
    encoder: PromptEncoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A model that was trained with BOS needs it."""
    ids = encoder.encode(TextPrompt(text="The fox"))

    assert ids[0] == BOS_ID
    assert tokenizer.decode(list(ids[1:])) == "The fox"


def test_token_ids_are_used_as_they_are(encoder: PromptEncoder) -> None:
    """Nothing is put before them, and special tokens may stand anywhere."""
    assert encoder.encode(TokenPrompt(ids=(5, 0, 3, 319))) == (5, 0, 3, 319)


def test_conversation_is_rendered_by_the_chat_template(
    encoder: PromptEncoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It ends with the start of the assistant's turn, and no second BOS is added."""
    ids = encoder.encode(chat(("system", "Hi"), ("user", "fox")))

    assert tokenizer.decode(list(ids)) == (
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n"
    )
    assert BOS_ID not in ids


def test_every_role_of_the_field_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whether a model can do with it is for its template to say."""
    tokenizer.chat_template = "{{ messages[0]['role'] }}"
    encoder = PromptEncoder(tokenizer, LIMITS)

    for role in ROLES:
        ids = encoder.encode(chat((role, "x")))
        assert tokenizer.decode(list(ids)) == role


def test_unknown_role_is_refused_by_its_path(encoder: PromptEncoder) -> None:
    """The client learns which message is wrong and what it may say."""
    field, problem = refusal(encoder, chat(("user", "a"), ("robot", "b")))

    assert field == "messages.messages[1].role"
    assert problem == "'robot' is not a role; use one of system, user, assistant, tool"


def test_refusal_of_the_chat_template_is_passed_on(encoder: PromptEncoder) -> None:
    """Templates know rules of their own, such as turns that must alternate."""
    field, problem = refusal(encoder, chat(("tool", "42")))

    assert field == "messages.messages"
    assert problem == "the model's chat template refuses them: unknown role: tool"


def test_model_without_chat_template_refuses_messages(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Guessing a format would give answers that look merely bad."""
    tokenizer.chat_template = None

    field, problem = refusal(PromptEncoder(tokenizer, LIMITS), chat(("user", "a")))

    assert field == "messages"
    assert problem == "this model has no chat template; send text or token_ids"


@pytest.mark.parametrize(
    ("prompt", "field"), [(TextPrompt(text="a"), "text"), (chat(("user", "a")), "messages")]
)
def test_model_without_tokenizer_takes_token_ids_alone(prompt: Prompt, field: str) -> None:
    """And says so by name."""
    encoder = PromptEncoder(None, LIMITS)

    assert encoder.encode(TokenPrompt(ids=(7,))) == (7,)
    assert refusal(encoder, prompt) == (field, "this model has no tokenizer; send token_ids")


def test_empty_prompts_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """There would be no logits to sample the first token from."""
    tokenizer.chat_template = "{{ '' }}"
    tokenizer.backend_tokenizer.post_processor = None  # adds no BOS
    encoder = PromptEncoder(tokenizer, LIMITS)
    problem = "the prompt is empty; it needs at least one token"

    assert refusal(encoder, TextPrompt(text="")) == ("text", problem)
    assert refusal(encoder, TokenPrompt(ids=())) == ("token_ids.ids", problem)
    assert refusal(encoder, chat(("user", "a"))) == ("messages.messages", problem)
    assert refusal(encoder, chat())[1] == "a conversation needs at least one message"


def test_empty_text_is_a_prompt_where_the_tokenizer_adds_a_token(encoder: PromptEncoder) -> None:
    """BOS alone is how such a model is asked to write from nothing."""
    assert encoder.encode(TextPrompt(text="")) == (BOS_ID,)


def test_longest_prompt_fits_and_one_token_more_is_refused(encoder: PromptEncoder) -> None:
    """The refusal says how long the prompt is and how long it may be."""
    field, problem = refusal(encoder, TokenPrompt(ids=(5,) * 41))

    assert len(encoder.encode(TokenPrompt(ids=(5,) * 40))) == 40
    assert field == "token_ids.ids"
    assert problem == "the prompt has 41 tokens, but this model takes at most 40; shorten it"
    assert refusal(encoder, TextPrompt(text="xyz " * 40))[0] == "text"


@pytest.mark.parametrize(
    "make", [lambda text: TextPrompt(text=text), lambda text: chat(("user", text))]
)
def test_absurdly_long_text_is_refused_before_it_is_tokenised(
    tokenizer: PreTrainedTokenizerFast, make: Callable[[str], Prompt]
) -> None:
    """Counted in bytes, which costs nothing; signs of four bytes count as four."""
    encoder = PromptEncoder(tokenizer, LIMITS)
    max_bytes = 40 * MAX_BYTES_PER_TOKEN
    text = "🙂" * (max_bytes // 4)

    assert f"has {max_bytes + 1} bytes" in refusal(encoder, make(text + "a"))[1]
    assert "tokens, but" in refusal(encoder, make(text))[1]


@pytest.mark.parametrize("token_id", [VOCAB_SIZE, 2**32 - 1, -1])
def test_token_id_outside_the_vocabulary_is_refused_by_its_path(
    encoder: PromptEncoder, token_id: int
) -> None:
    """In the engine it would end every request of the step."""
    field, problem = refusal(encoder, TokenPrompt(ids=(1, 2, token_id, token_id)))

    assert field == "token_ids.ids[2]"
    assert problem == f"token id {token_id} is not in the model's vocabulary of {VOCAB_SIZE}"


def test_token_that_the_model_lacks_is_refused_in_text_too(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Tokenizers with added tokens are sometimes larger than the model's embedding."""
    encoder = PromptEncoder(tokenizer, PromptLimits(vocab_size=50, max_prompt_tokens=40))

    field, problem = refusal(encoder, TextPrompt(text="zzz"))

    assert field == "text"
    assert "vocabulary of 50" in problem


def test_encoder_may_be_used_by_many_threads(encoder: PromptEncoder) -> None:
    """Prompts are encoded off the event loop; fast tokenizers complain when changed meanwhile."""
    prompts: list[Prompt] = [TextPrompt(text=f"fox {n}") for n in range(100)]
    prompts += [chat(("user", f"fox {n}")) for n in range(100)]
    expected = [encoder.encode(prompt) for prompt in prompts]

    with ThreadPoolExecutor(8) as pool:
        encoded = list(pool.map(encoder.encode, prompts))

    assert encoded == expected


def test_tokenizer_of_a_model_folder_is_loaded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With its chat template, which lies in a file of its own."""
    tokenizer.save_pretrained(tmp_path)

    loaded = load_tokenizer(tmp_path)

    assert loaded is not None
    assert loaded.chat_template == tokenizer.chat_template
    assert PromptEncoder(loaded, LIMITS).encode(TextPrompt(text="fox"))[0] == BOS_ID


def test_folder_without_tokenizer_files_has_none(tmp_path: Path) -> None:
    """Such a model is served with token ids."""
    (tmp_path / "config.json").write_text("{}")

    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("content", ["{", '{"a": 1}'])
def test_broken_tokenizer_stops_the_start(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: str
) -> None:
    """Serving without it would refuse every text for no reason that a client could see."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(tmp_path)


def test_tokenizer_without_a_fast_implementation_is_refused(tmp_path: Path) -> None:
    """The remedy is named; it is done once, outside of the server."""
    ByT5Tokenizer().save_pretrained(tmp_path)

    with pytest.raises(ModelError, match=r"ByT5Tokenizer, which has no fast .* tokenizer.json"):
        load_tokenizer(tmp_path)


def test_truncation_that_a_tokenizer_file_asks_for_is_not_done(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Files saved after training often hold it; a cut prompt would be answered without a word."""
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    file.write_text(json.dumps(content))

    loaded = load_tokenizer(tmp_path)

    assert loaded is not None
    assert len(PromptEncoder(loaded, LIMITS).encode(TextPrompt(text="abcdefgh"))) > 4

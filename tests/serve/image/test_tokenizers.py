"""Tokenizers for many threads, and counting a prompt's tokens."""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lokr_serve.config import ModelSettings
from lokr_serve.image.families import FAMILIES, pipeline_class
from lokr_serve.image.load import load_pipeline
from lokr_serve.image.tokenizers import serial_tokenizer
from tests.tiny import tiny_tokenizer
from tests.tiny.pipelines import make_pipeline, save_pipeline


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


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "stable-diffusion-3", "flux2", "z-image"])
def test_a_loaded_pipelines_tokenizers_may_be_shared(name: str, tmp_path: Path) -> None:
    """Every request's pipeline is built over the same ones, and makes what it made before."""
    save_pipeline(tmp_path, name)
    loaded = load_pipeline(ModelSettings(path=tmp_path, device="cpu")).pipeline
    stock = make_pipeline(name)

    kinds = {
        part: type(component)
        for part, component in loaded.components.items()
        if part.startswith("tokenizer")
    }
    images = [run_briefly(pipeline) for pipeline in (loaded, stock)]

    assert {kind.__name__ for kind in kinds.values()} == {"_SerialTokenizer"}
    torch.testing.assert_close(images[0], images[1], rtol=1e-4, atol=1e-4)


def test_a_readers_limit_is_that_of_the_stock_call() -> None:
    """Where the tokenizer does not say it, the pipeline's call does; a copy must not go stale."""
    for family in FAMILIES:
        limits = {reader.max_tokens for reader in family.text_encoders} - {None}
        call = inspect.signature(pipeline_class(family.text_to_image).__call__)
        parameter = call.parameters.get("max_sequence_length")

        assert limits == (set() if parameter is None else {parameter.default})


def run_briefly(pipeline: DiffusionPipeline) -> torch.Tensor:
    """Return the latents of an image after one step."""
    pipeline.set_progress_bar_config(disable=True)
    output = cast(Callable[..., tuple[torch.Tensor]], pipeline)(
        prompt="a fox",
        num_inference_steps=1,
        width=16,
        height=16,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",
    )
    return output[0]

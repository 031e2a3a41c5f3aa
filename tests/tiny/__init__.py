"""Tiny real models, a tokenizer, and adapters made by the real trainers."""

from tests.tiny.models import (
    MAX_POSITIONS,
    VOCAB_SIZE,
    ModelFactory,
    save_model,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
)
from tests.tiny.peers import (
    GPT2_TARGETS,
    LLAMA_TARGETS,
    LYCORIS_TARGETS,
    LycorisAdapter,
    conv1d_lokr_file,
    conv1d_lokr_merged,
    lycoris_file,
    lycoris_merged,
    peft_loha,
    peft_lokr,
    peft_lora,
    peft_merged,
)

__all__ = [
    "GPT2_TARGETS",
    "LLAMA_TARGETS",
    "LYCORIS_TARGETS",
    "MAX_POSITIONS",
    "VOCAB_SIZE",
    "LycorisAdapter",
    "ModelFactory",
    "conv1d_lokr_file",
    "conv1d_lokr_merged",
    "lycoris_file",
    "lycoris_merged",
    "peft_loha",
    "peft_lokr",
    "peft_lora",
    "peft_merged",
    "save_model",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_tokenizer",
]

"""The text engine: from checked requests to a stream of tokens and text."""

from lokr_serve.text.engine import TextEngine
from lokr_serve.text.generation import Generation
from lokr_serve.text.prompt import PromptEncoder, PromptLimits, load_tokenizer

__all__ = [
    "Generation",
    "PromptEncoder",
    "PromptLimits",
    "TextEngine",
    "load_tokenizer",
]

"""Tokenizers for many threads: a stand-in that lets one call in at a time, and counting with it."""

from collections.abc import Sized
from dataclasses import dataclass
from enum import Enum
from threading import RLock
from types import MethodType
from typing import Any, TypeVar, cast

from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img import QwenImageImg2ImgPipeline
from transformers import PreTrainedTokenizerBase

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


class _SerialTokenizer:
    """Looks like the tokenizer that it holds, and calls it under a lock.

    Fast tokenizers keep their padding and truncation in one place that is set for each call, and
    raise "Already borrowed" when another thread reads it. Attributes cannot be set.
    """

    __slots__ = ("_lock", "_tokenizer")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lock: RLock) -> None:
        self._tokenizer = tokenizer
        self._lock = lock

    @property  # type: ignore[misc]  # isinstance reads it, nobody sets it
    def __class__(self) -> type[Any]:
        return type(self._tokenizer)

    def __call__(self, *args: object, **kwargs: object) -> object:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        with self._lock:
            return len(cast(Sized, self._tokenizer))

    def __getattr__(self, name: str) -> object:
        with self._lock:
            value: object = getattr(self._tokenizer, name)
        return self._serial(value) if isinstance(value, MethodType) else value

    def _serial(self, method: MethodType) -> object:
        def call(*args: object, **kwargs: object) -> object:
            with self._lock:
                return method(*args, **kwargs)

        return call


def serial_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a stand-in that threads may share; all of them must use the same one."""
    return cast(Tokenizer, _SerialTokenizer(tokenizer, RLock()))


class PromptForm(Enum):
    """What a pipeline makes of a prompt before it is encoded."""

    PLAIN = "plain"
    TEMPLATE = "template"  # the pipeline's own, put around the prompt
    SYSTEM_CHAT = "system chat"  # the tokenizer's chat template, after the pipeline's instruction
    CHAT = "chat"  # the tokenizer's chat template, with an empty thought
    THINKING_CHAT = "thinking chat"  # the same, with the thought left open


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReader:
    """A text encoder of a pipeline, and how much of a prompt it sees."""

    component: str
    tokenizer: str  # component
    form: PromptForm = PromptForm.PLAIN
    max_tokens: int | None = None  # None: as many as its tokenizer says

    def is_in(self, pipeline: DiffusionPipeline) -> bool:
        """Return whether the pipeline has it; some run without one of theirs."""
        return pipeline.components.get(self.component) is not None

    def limit(self, pipeline: DiffusionPipeline) -> int:
        """Return how many tokens it sees, those of the form around the prompt included."""
        if self.max_tokens is not None:
            return self.max_tokens
        return int(pipeline.components[self.tokenizer].model_max_length)

    def count(self, pipeline: DiffusionPipeline, prompt: str) -> int:
        """Return the number of tokens of a prompt, nothing cut off, in the form it is given.

        Args:
            pipeline: Whose tokenizer it is: a stand-in where other threads use it too.
            prompt: As in the request.
        """
        tokenizer = pipeline.components[self.tokenizer]
        if self.form is PromptForm.SYSTEM_CHAT:
            messages = format_input([prompt], SYSTEM_MESSAGE)
            return len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"][0])
        ids = tokenizer(self._formed(pipeline, prompt), verbose=False)["input_ids"]
        return len(ids) - self._num_dropped(pipeline)

    def _formed(self, pipeline: DiffusionPipeline, prompt: str) -> str:
        match self.form:
            case PromptForm.TEMPLATE:
                assert isinstance(pipeline, QwenImagePipeline | QwenImageImg2ImgPipeline)
                return pipeline.prompt_template_encode.format(prompt)
            case PromptForm.CHAT | PromptForm.THINKING_CHAT:
                text = pipeline.components[self.tokenizer].apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=self.form is PromptForm.THINKING_CHAT,
                )
                return str(text)
            case _:
                return prompt

    def _num_dropped(self, pipeline: DiffusionPipeline) -> int:
        """Return how many tokens are encoded but not seen by the denoiser."""
        if isinstance(pipeline, QwenImagePipeline | QwenImageImg2ImgPipeline):
            return pipeline.prompt_template_encode_start_idx
        return 0

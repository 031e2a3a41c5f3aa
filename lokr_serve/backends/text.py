"""A language model as a backend."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lokr_core import Adapted
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import ModelSettings, Settings
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import TextBackend
from lokr_serve.text import PromptEncoder, TextEngine
from lokr_serve.text.load import load_model
from lokr_serve.text.prompt import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageModel:
    """A causal language model, with its tokenizer if it has one."""

    modules: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast | None

    def backend(
        self, adapted: Adapted, registry: AdapterRegistry, settings: Settings, metrics: Metrics
    ) -> TextBackend:
        """Build what calls are served from; its engine is not started."""
        engine = TextEngine(
            adapted=adapted,
            tokenizer=self.tokenizer,
            settings=settings.text,
            metrics=metrics,
        )
        encoder = PromptEncoder(self.tokenizer, engine.prompt_limits)
        return TextBackend(registry=registry, encoder=encoder, engine=engine)


def load_language_model(settings: ModelSettings) -> LanguageModel:
    """Load a model of transformers and its tokenizer; takes long.

    Raises:
        LokrError: It cannot be loaded, or cannot be served.
    """
    tokenizer = load_tokenizer(settings.path)
    return LanguageModel(modules=load_model(settings), tokenizer=tokenizer)

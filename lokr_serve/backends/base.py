"""The base model of a server, of whatever kind, and the backend over it."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from torch import nn

import lokr_core
from lokr_core import Adapted
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.backends.text import load_language_model
from lokr_serve.config import Settings
from lokr_serve.image.folder import is_pipeline
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import Backend


class LoadedModel(Protocol):
    """A model that is loaded, and knows what serves it."""

    @property
    def modules(self) -> nn.Module | Mapping[str, nn.Module]:
        """What adapters are put onto."""

    def backend(
        self, adapted: Adapted, registry: AdapterRegistry, settings: Settings, metrics: Metrics
    ) -> Backend:
        """Build what calls are served from; its engine is not started."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Base:
    """The base model, prepared for adapters."""

    loaded: LoadedModel
    adapted: Adapted


def load_base(settings: Settings) -> Base:
    """Load the model, whose kind is told by its folder; takes long.

    Raises:
        LokrError: It cannot be loaded, or cannot be served.
    """
    loaded = _load(settings)
    adapted = lokr_core.attach(
        loaded.modules,
        merge_cache_bytes=settings.adapters.merge_cache_bytes,
        bank_bytes=settings.adapters.bank_bytes,
    )
    return Base(loaded=loaded, adapted=adapted)


def _load(settings: Settings) -> LoadedModel:
    if not is_pipeline(settings.model.path):
        return load_language_model(settings.model)
    from lokr_serve.backends.image import load_pipeline_model  # with diffusers: slow to import

    return load_pipeline_model(settings.model)


async def build_backend(
    base: Base, settings: Settings, metrics: Metrics, stack: AsyncExitStack
) -> Backend:
    """Build what calls are served from; ``stack`` takes its registry down."""
    registry = AdapterRegistry(adapted=base.adapted, settings=settings.adapters, metrics=metrics)
    stack.push_async_callback(registry.close)
    await registry.scan()
    metrics.watch_activity(registry.activity)
    return base.loaded.backend(base.adapted, registry, settings, metrics)

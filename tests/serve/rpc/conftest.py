"""A real backend, built and not started, for tests of who may use it."""

import pytest_asyncio

import lokr_core
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import AdapterSettings, TextSettings
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.backend import TextBackend
from lokr_serve.text import PromptEncoder, TextEngine
from tests.tiny import tiny_llama


@pytest_asyncio.fixture
async def backend() -> TextBackend:
    """A backend over a tiny model."""
    adapted = lokr_core.attach(tiny_llama())
    metrics = Metrics(version="test")
    registry = AdapterRegistry(adapted=adapted, settings=AdapterSettings(), metrics=metrics)
    engine = TextEngine(adapted=adapted, tokenizer=None, settings=TextSettings(), metrics=metrics)
    encoder = PromptEncoder(None, engine.prompt_limits)
    return TextBackend(registry=registry, encoder=encoder, engine=engine)

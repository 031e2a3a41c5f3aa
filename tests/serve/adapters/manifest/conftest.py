"""A registry over three adapters that is held to a manifest."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from lokr_serve.metrics import Metrics
from tests.serve.adapters.conftest import MakeRegistry, Store
from tests.serve.adapters.manifest.declaring import (
    LOOK_SECONDS,
    Declaring,
    Entry,
    Hold,
    declaring,
)


@pytest.fixture
def hold(make_registry: MakeRegistry, store: Store, metrics: Metrics, tmp_path: Path) -> Hold:
    """Holds a new registry over adapters a, b and c to a manifest; takes entries and settings."""
    for seed, name in enumerate("abc"):
        store.write(name, seed)

    def holding(*entries: Entry, **settings: object) -> AbstractAsyncContextManager[Declaring]:
        settings = {"manifest_seconds": LOOK_SECONDS, "retry_seconds": 0.01, **settings}
        registry = make_registry(**settings)
        return declaring(registry, tmp_path / "manifest.yaml", metrics, *entries)

    return holding

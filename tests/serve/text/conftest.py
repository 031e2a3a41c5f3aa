"""One float64 model with adapters, for the tests of the text engine."""

from collections.abc import Iterator

import pytest
import torch

from tests.serve.text.engines import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model with adapters, shared by tests that leave it as they found it."""
    return build_world(tmp_path_factory.mktemp("text"))


@pytest.fixture
def merged(world: World) -> Iterator[World]:
    """The same, with every mix merged and leased."""
    with torch.no_grad():
        for mix in world.mixes[1:]:
            if not world.adapted.merges.acquire(mix):
                world.adapted.merges.put(mix, world.adapted.merge(mix))
    yield world
    for mix in world.mixes[1:]:
        world.adapted.merges.release(mix)

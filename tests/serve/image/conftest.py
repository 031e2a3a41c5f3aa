"""One float64 pipeline with adapters, for the tests of the image engine."""

import pytest

from tests.serve.image.engines import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A Stable Diffusion 1.5, shared by tests that leave it as they found it."""
    return build_world(tmp_path_factory.mktemp("image"), "stable-diffusion")

"""Property tests of the core have no deadline: the machine's load is no property of the code."""

from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=60)
settings.load_profile("core")

"""What calls are served from: the model in a folder, loaded, with its registry and its engine."""

from lokr_serve.backends.base import Base, build_backend, load_base

__all__ = ["Base", "build_backend", "load_base"]

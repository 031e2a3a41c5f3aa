"""The command line, ``lokr-serve``."""

from lokr_serve.cli.main import main

__all__ = ["main"]

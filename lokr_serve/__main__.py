"""``python -m lokr_serve`` is ``lokr-serve``."""

from lokr_serve.cli import main

main()

"""One benchmark in the process that runs it."""

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.figures import Figure
from benchmarks.scope import Scope


def measure(name: str, num_pairs: int, num_threads: int, is_small: bool) -> list[Figure]:
    """Run the benchmark of this name, with an empty folder that is gone afterwards."""
    torch.set_num_threads(num_threads)
    disable_progress_bar()
    module = importlib.import_module(f"benchmarks.{name}")
    with TemporaryDirectory(prefix="lokr-bench-") as folder:
        scope = Scope(num_pairs=num_pairs, folder=Path(folder), is_small=is_small)
        figures: list[Figure] = module.run(scope)
        return figures

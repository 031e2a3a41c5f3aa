"""Where the demo keeps its pipeline and adapters, made once and used again."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from examples.demo.images.train_pipeline import train_pipeline
from examples.demo.images.train_styles import train_styles
from examples.demo.recipe import Marker

RECIPE_FILES = (
    "../budget.py",
    "autoencoder.py",
    "canvas.py",
    "components.py",
    "denoising.py",
    "pictures.py",
    "scenes.py",
    "train_pipeline.py",
    "train_styles.py",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """The image part's folder."""

    root: Path

    @property
    def model(self) -> Path:
        """The pipeline."""
        return self.root / "model"

    @property
    def adapters(self) -> Path:
        """The adapters that the server is given."""
        return self.root / "adapters"

    @property
    def log(self) -> Path:
        """What the server wrote to standard error."""
        return self.root / "server.log"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.root / "contact-sheet.png"

    def prepare(self) -> float:
        """Train what is not there yet, in silence, and return the seconds that it took."""
        console = Console(quiet=True)
        began = time.monotonic()
        marker = Marker.of(self.root, (Path(__file__).parent / name for name in RECIPE_FILES))
        if not marker.is_set:
            shutil.rmtree(self.root, ignore_errors=True)
            torch.set_num_threads(1)  # text is learnt on the other core
            transformers_logging.disable_progress_bar()
            diffusers_logging.disable_progress_bar()
            train_pipeline(self.model, console)
            train_styles(self.model, self.adapters, console)
            marker.set()
        return time.monotonic() - began

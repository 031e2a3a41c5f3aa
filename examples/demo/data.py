"""Where the demo keeps its model and adapters, made once and used again."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from examples.demo.recipe import Marker
from examples.demo.text import read_corpus
from examples.demo.train_adapters import CAPITALS, CODE, MARGIN, train_adapters
from examples.demo.train_model import train_model

RECIPE_FILES = ("budget.py", "lessons.py", "text.py", "train_adapters.py", "train_model.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """The demo's folder."""

    root: Path

    @property
    def model(self) -> Path:
        """The base model."""
        return self.root / "model"

    @property
    def trained(self) -> Path:
        """Every adapter that was trained."""
        return self.root / "trained"

    @property
    def adapters(self) -> Path:
        """The adapters that the server is given."""
        return self.root / "adapters"

    @property
    def log(self) -> Path:
        """What the server wrote to standard error."""
        return self.root / "server.log"

    def prepare(self, console: Console) -> None:
        """Train what is not there yet, and lay out the adapters that the server starts with."""
        marker = Marker.of(self.root, (Path(__file__).parent / name for name in RECIPE_FILES))
        if not marker.is_set:
            for folder in (self.model, self.trained):
                shutil.rmtree(folder, ignore_errors=True)
            # Such small products gain little from a second thread, and lose much where it has to
            # share its core.
            torch.set_num_threads(1)
            corpus = read_corpus()
            train_model(corpus, self.model, console)
            train_adapters(corpus, self.model, self.trained, console)
            marker.set()
        shutil.rmtree(self.adapters, ignore_errors=True)
        for file in (CODE, CAPITALS, MARGIN):
            self.publish(file, file)

    def publish(self, trained: str, name: str) -> None:
        """Put a trained adapter before the server under this name, in one step."""
        self.adapters.mkdir(exist_ok=True)
        source, target = self.trained / trained, self.adapters / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            partial = target.with_suffix(".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)

"""What kind of model a folder holds, told without importing diffusers, which takes seconds."""

from pathlib import Path

INDEX_NAME = "model_index.json"


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder is one of a pipeline of diffusers."""
    return (folder / INDEX_NAME).is_file()

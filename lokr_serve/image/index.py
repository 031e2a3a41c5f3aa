"""What a folder says of its pipeline: its family, its components, and its options."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lokr_serve.errors import ModelError
from lokr_serve.image.families import Family, family_of, pipeline_class
from lokr_serve.image.folder import INDEX_NAME
from lokr_serve.pretrained import reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What the index says of one component."""

    name: str
    library: str  # diffusers, transformers, or a module of pipelines
    class_name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index:
    """What a folder says of its pipeline."""

    family: Family
    components: tuple[Component, ...]  # those that are there
    options: Mapping[str, object]  # of the pipeline's constructor


def read_index(folder: Path) -> Index:
    """Return what a folder says of its pipeline.

    Raises:
        ModelError: It cannot be read, or is of a pipeline that is not served.
    """
    path = folder / INDEX_NAME
    with reading(path, ModelError):
        entries = json.loads(path.read_text())
    if not isinstance(entries, dict):
        raise ModelError(f"model.path: {path} is not an object")
    family = _read_family(path, entries)
    components: list[Component] = []
    options: dict[str, object] = {}
    for name, entry in entries.items():
        match entry:
            case _ if name.startswith("_"):
                pass
            case [None, None]:
                pass
            case [str(library), str(class_name)]:
                components.append(Component(name=name, library=library, class_name=class_name))
            case list():
                raise ModelError(f"model.path: {path} says {entry!r} of {name!r}")
            case _:
                options[name] = entry
    _require_all(path, family, {component.name for component in components})
    return Index(family=family, components=tuple(components), options=options)


def _read_family(path: Path, entries: Mapping[str, object]) -> Family:
    class_name = entries.get("_class_name")
    if isinstance(class_name, list):
        raise ModelError(
            f"model.path: {path} names a pipeline with code of its own, {class_name!r}, "
            "which is not served"
        )
    if not isinstance(class_name, str):
        raise ModelError(f"model.path: {path} does not name a pipeline class")
    family = family_of(class_name)
    if entries.get("requires_aesthetics_score"):
        raise ModelError(f"model.path: {path} is of a refiner of images, which is not served")
    return family


def _require_all(path: Path, family: Family, names: set[str]) -> None:
    """Check that nothing is left out that the pipeline cannot do without."""
    parameters = inspect.signature(pipeline_class(family.text_to_image)).parameters
    needed = {
        name for name, parameter in parameters.items() if parameter.default is parameter.empty
    }
    missing = sorted(needed - family.may_lack - names)
    if missing:
        raise ModelError(f"model.path: {path} names no {', '.join(missing)}")

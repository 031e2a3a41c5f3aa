"""Which rows of which base module the rows of a file's module reach."""

import torch
from torch import Tensor

from lokr_core.formats.binding import FileModule, bind
from lokr_core.formats.names import ModuleNames
from lokr_core.formats.vocabulary import Vocabulary
from lokr_core.spec import ModelSpec

# Names that are neither those of the original code nor of diffusers as it is loaded.
_NEITHER = (".to_qkv", ".to_kv", ".to_added_qkv", ".processor.")


def found(names: ModuleNames, name: str) -> FileModule:
    """Return the module of a file with one tensor of this module name."""
    binding = bind({f"{name}.diff": torch.zeros(1, 1)}, names)
    assert binding.unmatched == ()
    (module,) = binding.modules
    return module


def is_bound(names: ModuleNames, name: str) -> bool:
    """Return whether a module name finds a module of the base."""
    return not bind({f"{name}.diff": torch.zeros(1, 1)}, names).unmatched


def paths(module: FileModule) -> list[str]:
    """Return the paths of the base modules that a file's module changes."""
    return [target.spec.path for target in module.targets]


def reached(module: FileModule) -> dict[str, Tensor]:
    """Return, for each base module, which of the file's outputs each of its outputs gets.

    Outputs that get none have -1.
    """
    rows: dict[str, Tensor] = {}
    for target in module.targets:
        size = target.spec.out_features
        reaching = rows.setdefault(target.spec.path, torch.full((size,), -1))
        if target.rows is None or target.at is None:
            reaching[:] = torch.arange(size)
        else:
            end = target.at + len(target.rows)
            reaching[target.at : end] = torch.arange(target.rows.start, target.rows.stop)
    return rows


def original_names(spec: ModelSpec) -> list[str]:
    """Return the original names of all modules of a base with the names of diffusers."""
    dotted = Vocabulary.of(spec.modules).dotted
    others = [
        name
        for name in dotted
        if name not in spec.modules
        and not name.startswith("sformer_blocks.")
        and not any(part in name for part in _NEITHER)
    ]
    renamed = {span.path for name in others for place in dotted[name] for span in place}
    return [*others, *(path for path in spec.modules if path not in renamed)]

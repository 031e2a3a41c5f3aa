"""The files that a pipeline's modules are stored in: which to read, and in what dtype they are."""

import re
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from lokr_serve.errors import ModelError
from lokr_serve.pretrained import reading

_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)
_PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def find_variant(folder: Path) -> str | None:
    """Return the variant of a module's weights, such as fp16; None for the plain files.

    Raises:
        ModelError: There are no weights, only pickled ones, or several variants but no plain files.
    """
    matches = [match for path in folder.glob("*.safetensors") if (match := _match(path))]
    variants = sorted({match["variant"] or "" for match in matches})
    if not variants and any(any(folder.glob(pattern)) for pattern in _PICKLED):
        raise ModelError(
            f"model.path: {folder} has its weights pickled, and reading those can run any code; "
            "convert them to safetensors"
        )
    if not variants:
        raise ModelError(f"model.path: {folder} has no weights in safetensors")
    if variants[0] and len(variants) > 1:
        raise ModelError(
            f"model.path: {folder} has weights of the variants {', '.join(variants)}; keep one"
        )
    return variants[0] or None


def _match(path: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(path.name)


def stored_dtype(folder: Path, variant: str | None) -> torch.dtype:
    """Return the dtype that most numbers of a module's weights are stored in.

    Args:
        folder: The module's.
        variant: As ``find_variant`` has returned it.

    Raises:
        ModelError: They are stored in one that cannot be computed in, or cannot be read.
    """
    counts: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        if (match := _match(path)) and match["variant"] == variant:
            with reading(path, ModelError), safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # it is no mapping
                    view = file.get_slice(key)
                    counts[view.get_dtype()] += torch.Size(view.get_shape()).numel()
    floating = {name: count for name, count in counts.items() if name[0] in "BF" and name != "BOOL"}
    name = max(floating, key=lambda name: floating[name], default="no floating point")
    if name not in _DTYPES:
        raise ModelError(
            f"model.path: {folder} stores its weights in {name}; set model.dtype to compute in"
        )
    return _DTYPES[name]

"""Bases that files alone give: sizes follow from every form of every algorithm."""

import pytest
import torch
from torch import Tensor

from lokr_core.formats.inspect.file_base import file_base
from lokr_core.spec import ModuleKind

FORMS: dict[
    str, tuple[dict[str, tuple[int, ...]], ModuleKind, tuple[int, int], tuple[int, ...]]
] = {
    "full": ({"lokr_w1": (2, 3), "lokr_w2": (4, 5)}, ModuleKind.LINEAR, (8, 15), ()),
    "low-rank": (
        {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
        ModuleKind.LINEAR,
        (8, 15),
        (),
    ),
    "conv1d": ({"lokr_w1": (2, 3), "lokr_w2": (4, 5, 3)}, ModuleKind.CONV, (8, 45), (3,)),
    "conv3d": (
        {"lokr_w1": (2, 3), "lokr_w2": (4, 5, 1, 2, 3)},
        ModuleKind.CONV,
        (8, 90),
        (1, 2, 3),
    ),
    "tucker": (
        {"lokr_w1": (2, 3), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 5)},
        ModuleKind.CONV,
        (8, 135),
        (3, 3),
    ),
    "loha": (
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)},
        ModuleKind.LINEAR,
        (8, 6),
        (),
    ),
    "tucker loha": (
        {"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 8), "hada_w1_b": (2, 6)},
        ModuleKind.CONV,
        (8, 54),
        (3, 3),
    ),
    "lora": (
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 6)},
        ModuleKind.LINEAR,
        (8, 6),
        (),
    ),
    "locon": (
        {
            "lora_up.weight": (8, 2, 1, 1),
            "lora_mid.weight": (2, 2, 3, 3),
            "lora_down.weight": (2, 6, 1, 1),
        },
        ModuleKind.CONV,
        (8, 54),
        (3, 3),
    ),
    "embedding": (
        {"lora_embedding_A": (2, 20), "lora_embedding_B": (6, 2)},
        ModuleKind.EMBEDDING,
        (20, 6),
        (),
    ),
    "difference": ({"diff": (8, 6)}, ModuleKind.LINEAR, (8, 6), ()),
    "norm": ({"w_norm": (8,)}, ModuleKind.NORM, (8, 1), ()),
    "replaced norm": ({"weight": (8,), "bias": (8,)}, ModuleKind.NORM, (8, 1), ()),
    "bias alone": ({"diff_b": (8,)}, ModuleKind.LINEAR, (8, 1), ()),
    "lost partner": ({"lokr_w1_a": (2, 1), "lokr_w2": (4, 5)}, ModuleKind.LINEAR, (4, 5), ()),
    "lost factors": ({"alpha": ()}, ModuleKind.LINEAR, (1, 1), ()),
    "kernel of no size": (
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6, 0), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6, 0)},
        ModuleKind.CONV,
        (8, 1),
        (1,),
    ),
    "magnitude of no size": (
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 6), "dora_scale": (1, 0, 1, 1)},
        ModuleKind.CONV,
        (8, 6),
        (6, 1),
    ),
    "scalar": ({"diff": ()}, ModuleKind.LINEAR, (1, 1), ()),
    "flattened convolution with DoRA by input": (
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 54), "dora_scale": (1, 6, 1, 1)},
        ModuleKind.CONV,
        (8, 54),
        (9, 1),
    ),
    "flattened convolution with DoRA by output": (
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 54), "dora_scale": (8, 1, 1, 1)},
        ModuleKind.CONV,
        (8, 54),
        (1, 1),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_sizes_follow_from_the_tensors(name: str) -> None:
    """A file is read by the same code with and without its base."""
    shapes, kind, shape, kernel = FORMS[name]
    tensors: dict[str, Tensor] = {
        f"base_model.model.a.b.{leaf}": torch.ones(sizes) for leaf, sizes in shapes.items()
    }
    spec = file_base(tensors).modules["a.b"]

    assert (spec.kind, spec.shape, spec.kernel) == (kind, shape, kernel)


def test_its_weights_take_no_memory() -> None:
    """The base of a file may have billions of them."""
    tensors = {
        "a.lora_up.weight": torch.ones(1 << 20, 1),
        "a.lora_down.weight": torch.ones(1, 1 << 20),
    }
    weight = file_base(tensors).modules["a"].weight

    assert weight.shape == (1 << 20, 1 << 20)
    assert weight.untyped_storage().nbytes() == 4

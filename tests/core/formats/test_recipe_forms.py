"""The short way of reading, over every form and layer: taken where it can be, and never wrong."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.core.formats.hand_made import draw, write
from tests.core.formats.test_recipe import CountingReader, assert_same
from tests.parity.fused import split_base

NUM_FILES = 3


def layered_spec() -> ModelSpec:
    """Return a base with a layer of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.ModuleDict(
            {
                "linear": nn.Linear(6, 4),
                "conv": nn.Conv2d(6, 4, 3),
                "norm": nn.LayerNorm(4),
                "embed": nn.Embedding(8, 6),
            }
        )
    return discover(base)


def steps(folder: Path, spec: ModelSpec, shapes: dict[str, tuple[int, ...]]) -> int:
    """Read files of these tensors, check each, and return how many took the long way."""
    reader = CountingReader(spec)
    for seed in range(NUM_FILES):
        tensors = {
            key: torch.tensor(3.0) if not shape else draw(*shape, seed=100 * seed + index).abs()
            for index, (key, shape) in enumerate(shapes.items())
        }
        path = write(folder, tensors)
        assert_same(reader.read(path), read_adapter(path, spec))
    return reader.num_steps


def named(module: str, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return shapes by the keys of a file; leaves have two underscores in place of a dot."""
    return {f"lycoris_{module}.{leaf.replace('__', '.')}": shape for leaf, shape in shapes.items()}


MOVED = {
    "a kernel": named("conv", lokr_w1=(2, 3), lokr_w2=(2, 2, 3, 3), alpha=()),
    "a core": named(
        "conv", lokr_w1=(2, 3), lokr_t2=(2, 2, 3, 3), lokr_w2_a=(2, 2), lokr_w2_b=(2, 2), alpha=()
    ),
    "a locon": named(
        "conv", lora_down__weight=(2, 6, 3, 3), lora_up__weight=(4, 2, 1, 1), alpha=()
    ),
    "whole differences": named("linear", diff=(4, 6), diff_b=(4,))
    | named("conv", diff=(4, 6, 3, 3)),
    "norms": named("norm", w_norm=(4,), b_norm=(4,)),
    "a scale of its own": named("linear", lokr_w1=(2, 3), lokr_w2=(2, 2), scale=()),
}


@pytest.mark.parametrize("shapes", MOVED.values(), ids=MOVED)
def test_forms_that_are_kept_as_they_lie_are_gathered(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Whatever the layer, next to no Python runs for the second file."""
    assert steps(tmp_path, layered_spec(), shapes) == 1


COMPUTED = {
    "a core with a transposed side": named(
        "conv",
        lora_down__weight=(2, 6, 1, 1),
        lora_mid__weight=(2, 2, 3, 3),
        lora_up__weight=(4, 2, 1, 1),
        alpha=(),
    ),
    "an embedding": {
        "embed.lora_embedding_A": (2, 8),
        "embed.lora_embedding_B": (6, 2),
        "embed.alpha": (),
    },
    "a bias that is scaled": {
        "linear.lora_A.weight": (2, 6),
        "linear.lora_B.weight": (4, 2),
        "linear.lora_B.bias": (4,),
        "linear.alpha": (),
    },
    "a replaced weight": {"linear.weight": (4, 6), **named("norm", w_norm=(4,))},
}


@pytest.mark.parametrize("shapes", COMPUTED.values(), ids=COMPUTED)
def test_forms_that_are_computed_or_turned_are_read_step_by_step(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Their bytes in the file are not those of the buffer."""
    assert steps(tmp_path, layered_spec(), shapes) == NUM_FILES


def test_other_scale_of_the_file_gives_another_scale(tmp_path: Path) -> None:
    """Like alpha, it is a value and not part of the header."""
    spec = layered_spec()
    reader = CountingReader(spec)
    for value in (1.0, 2.0, 2.0):
        tensors: dict[str, Tensor] = {
            "lycoris_linear.lokr_w1": draw(2, 3),
            "lycoris_linear.lokr_w2": draw(2, 2),
            "lycoris_linear.scale": torch.tensor(value),
        }

        assert reader.read(write(tmp_path, tensors)).scales.tolist() == [value]
    assert reader.num_steps == 2


@pytest.mark.parametrize(("num_rows", "num_steps"), [(6, 1), (8, NUM_FILES)])
def test_fused_file_is_gathered_unless_modules_share_a_part_of_a_tensor(
    tmp_path: Path, num_rows: int, num_steps: int
) -> None:
    """Six rows of w1 are two for each of q, k and v; eight are not, and the third is for two."""
    spec = discover(split_base(torch.float32))
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    shapes: dict[str, tuple[int, ...]] = {
        f"{key}.alpha": (),
        f"{key}.lokr_w1": (num_rows, 4),
        f"{key}.lokr_w2": (72 // num_rows, 6),
    }

    assert steps(tmp_path, spec, shapes) == num_steps

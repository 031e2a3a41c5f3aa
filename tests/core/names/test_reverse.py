"""Reverse maps: names of diffusers on a base with original or fused modules."""

from itertools import pairwise

import pytest
import torch
from diffusers.models.attention import AttentionMixin
from torch import Tensor

from lokr_core.formats.binding import FileModule
from lokr_core.formats.names import ModuleNames
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from lokr_core.weights import Rows
from tests.core.names.bases import FAMILIES, flux2, pipeline_spec, sd15, spec_of, tree, wan
from tests.core.names.rows import found, is_bound, original_names, paths, reached


def original_base(modules: dict[str, FileModule]) -> ModelSpec:
    """Return the spec of a model with the original names."""
    sizes = (
        (name, module.targets[0].spec.in_features, module.out_features)
        for name, module in modules.items()
    )
    with torch.device("meta"):
        return discover(tree(sizes))


def links(modules: dict[str, FileModule]) -> set[tuple[str, str, int, int]]:
    """Return which output of which name is which output of which path, as far as they move."""
    return {
        (name, path, *step)
        for name, module in modules.items()
        for path, rows in reached(module).items()
        for step in steps(rows)
    }


def steps(rows: Tensor) -> list[tuple[int, int]]:
    """Return where runs of outputs begin, in the base and in the file."""
    values = [-1, *rows.tolist()]
    return [
        (at, row)
        for at, (before, row) in enumerate(pairwise(values))
        if row >= 0 and (before < 0 or row != before + 1)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_reverse_undoes_the_map(name: str) -> None:
    """A file with split names, on a base with fused ones, is put where the fused rows are."""
    spec = spec_of(FAMILIES[name].make)
    names = ModuleNames(spec)
    forward = {original: found(names, original) for original in original_names(spec)}

    reverse_names = ModuleNames(original_base(forward))
    backward = {path: found(reverse_names, path) for path in spec.modules}

    assert links(backward) == {
        (path, original, file_row, at) for original, path, at, file_row in links(forward)
    }


def test_several_modules_share_a_fused_one() -> None:
    """The four parts of FLUX.1's first linear are of two sizes; both follow from its shape."""
    sizes = [("double_blocks.0.img_attn.qkv", 8, 24), ("vector_in.in_layer", 5, 8)]
    base = discover(tree([*sizes, ("single_blocks.3.linear1", 8, 56)]))
    names = ModuleNames(base)

    targets = [
        found(names, f"single_transformer_blocks.3.{part}").targets[0]
        for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]

    assert {target.spec.path for target in targets} == {"single_blocks.3.linear1"}
    assert [target.at for target in targets] == [0, 8, 16, 24]
    assert [target.rows for target in targets] == [Rows(start=0, stop=8)] * 3 + [
        Rows(start=0, stop=32)
    ]


def fused_spec() -> ModelSpec:
    """Return a FLUX.2 whose projections diffusers has fused; it keeps the split ones, unused."""
    model = flux2()
    assert isinstance(model, AttentionMixin)
    model.fuse_qkv_projections()
    return discover(model)


ATTENTION = "transformer_blocks.1.attn"


@pytest.mark.parametrize(
    ("part", "fused", "at"), [("to_k", "to_qkv", 8), ("add_v_proj", "to_added_qkv", 16)]
)
def test_fused_projections_take_the_place_of_the_split_ones(part: str, fused: str, at: int) -> None:
    """Once they are fused, to_q is no longer called: a delta there would change nothing."""
    names = ModuleNames(fused_spec())

    module = found(names, f"{ATTENTION}.{part}")

    assert paths(module) == [f"{ATTENTION}.{fused}"]
    assert (module.targets[0].at, module.out_features, module.is_whole) == (at, 8, False)


@pytest.mark.parametrize("name", [f"{ATTENTION}.to_qkv", "double_blocks.1.img_attn.qkv"])
def test_names_of_fused_modules_mean_a_fused_module_as_a_whole(name: str) -> None:
    """The thirds that an original name stands for are all of one module of such a base."""
    names = ModuleNames(fused_spec())

    module = found(names, name)

    assert module.is_whole
    assert paths(module) == [f"{ATTENTION}.to_qkv"]


@pytest.mark.parametrize(
    "sizes",
    [{"to_k": 8}, {"to_k": 4}, {"to_k": 8, "to_v": 8}],
    ids=["as large as both", "as large as a half", "both in other sizes"],
)
def test_modules_that_were_not_fused_keep_their_names(sizes: dict[str, int]) -> None:
    """Beside a projection of both, a base may have one of its own that is no part of it."""
    base = discover(
        tree((f"attn.{name}", 4, size) for name, size in ({"to_kv": 8} | sizes).items())
    )
    names = ModuleNames(base)

    for name in ("to_kv", *sizes):
        module = found(names, f"attn.{name}")
        assert module.is_whole
        assert paths(module) == [f"attn.{name}"]
    assert is_bound(names, "attn.to_v") == ("to_v" in sizes)


@pytest.mark.parametrize(
    ("fused", "outputs", "part"),
    [
        ("attn.to_qkv", 2, "attn.to_q"),
        ("attn.to_kv", 1, "attn.to_v"),
        ("single_blocks.0.linear1", 24, "single_transformer_blocks.0.proj_mlp"),
        ("single_blocks.0.linear1", 20, "single_transformer_blocks.0.attn.to_q"),
    ],
)
def test_too_few_outputs_are_not_shared_out(fused: str, outputs: int, part: str) -> None:
    """A part without an output, or with less than none, would be a module that is nowhere."""
    marks = [("double_blocks.0.img_attn.qkv", 8, 24), ("vector_in.in_layer", 5, 8)]
    names = ModuleNames(discover(tree([*marks, (fused, 8, outputs)])))

    assert paths(found(names, fused)) == [fused]
    assert not is_bound(names, part)


def test_fused_names_reach_split_modules() -> None:
    """Diffusers' own reader of FLUX.2 files makes names of fused projections."""
    names = ModuleNames(spec_of(wan))

    module = found(names, "blocks.0.attn1.to_qkv")

    assert paths(module) == [f"blocks.0.attn1.to_{name}" for name in "qkv"]
    assert [target.rows for target in module.targets] == [
        Rows(start=24 * index, stop=24 * (index + 1)) for index in range(3)
    ]


def test_names_of_old_attention_processors_are_known() -> None:
    """Diffusers kept LoRA layers in processors before it used PEFT."""
    attention = "mid_block.attentions.0.transformer_blocks.0.attn1"
    names = ModuleNames(pipeline_spec(unet=sd15))

    for part, path in (("to_q", "to_q"), ("to_out", "to_out.0")):
        module = found(names, f"unet.{attention}.processor.{part}_lora")
        assert paths(module) == [f"unet.{attention}.{path}"]


def test_maps_of_other_families_do_not_apply() -> None:
    """A FLUX.1 file on a Wan base must find nothing, not a module that happens to fit."""
    names = ModuleNames(spec_of(wan))

    assert not is_bound(names, "final_layer.linear")
    assert not is_bound(names, "double_blocks.0.img_attn.qkv")

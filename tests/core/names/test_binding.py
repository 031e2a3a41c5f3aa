"""Binding: modules of a file with their tensors; what cannot be told is refused by name."""

import pytest
import torch
from torch import Tensor, nn

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.binding import Binding, bind
from lokr_core.formats.names import ModuleNames, is_peft_style
from lokr_core.layers.discover import discover
from tests.core.names.bases import clip, clip_with_projection, flux2, pipeline_spec, spec_of, tree


def names_of(model: nn.Module) -> ModuleNames:
    """Return the names of a model."""
    return ModuleNames(discover(model))


def empty(*keys: str) -> dict[str, Tensor]:
    """Return a file with these keys, whose tensors hold nothing of interest."""
    return {key: torch.zeros(1) for key in keys}


def bound(*keys: str) -> Binding:
    """Return the binding of a file to a base with the modules ``a.q``, ``a.k`` and ``norm``."""
    return bind(empty(*keys), names_of(tree([("a.q", 4, 4), ("a.k", 4, 4), ("norm", 4, 4)])))


def test_tensors_are_gathered_by_module_in_the_order_of_the_file() -> None:
    """What follows reads one module at a time."""
    binding = bound("a.k.lokr_w1", "a.q.lokr_w1", "a.k.lokr_w2", "a.k.alpha")

    assert [module.name for module in binding.modules] == ["a.k", "a.q"]
    assert list(binding.modules[0].by_leaf) == ["lokr_w1", "lokr_w2", "alpha"]
    assert binding.modules[0].by_leaf["lokr_w2"].key == "a.k.lokr_w2"
    assert binding.unmatched == ()


def test_one_module_in_two_spellings_is_one_module() -> None:
    """Some files flatten the factors' names and not those of alphas."""
    binding = bound("lycoris_a_q.lokr_w1", "a.q.lokr_w2", "base_model.model.a.q.alpha")

    (module,) = binding.modules
    assert set(module.by_leaf) == {"lokr_w1", "lokr_w2", "alpha"}


@pytest.mark.parametrize("key", ["b.q.lokr_w1", "a.q.lokr_w9", "a.lokr_w1", "q.weight"])
def test_what_is_not_found_is_listed(key: str) -> None:
    """A key that is passed over without a word is the commonest fault of such readers."""
    binding = bound("a.q.lokr_w1", key)

    assert binding.unmatched == (key,)


def test_two_keys_for_one_factor_are_refused() -> None:
    """Either could be meant; both keys are named."""
    with pytest.raises(AdapterTensorError, match=r"a\.q\.lokr_w1.*lycoris_a_q\.lokr_w1"):
        bound("lycoris_a_q.lokr_w1", "a.q.lokr_w1")


def test_two_adapters_of_one_dump_are_refused() -> None:
    """A raw dump may hold several adapters; which one is wanted it does not say."""
    with pytest.raises(AdapterTensorError, match=r"lokr_w1\.two.*lokr_w1\.one"):
        bound("a.q.lokr_w1.one", "a.q.lokr_w1.two")


def test_modules_that_flatten_to_one_name_are_told_by_dots_alone() -> None:
    """Underscores are not undone: where they hide two modules, the file must be refused."""
    names = names_of(tree([("a.b_c", 4, 4), ("a_b.c", 4, 4)]))

    with pytest.raises(AdapterTensorError, match=r"lycoris_a_b_c\.alpha.*a\.b_c or a_b\.c"):
        bind(empty("lycoris_a_b_c.alpha"), names)
    assert bind(empty("a.b_c.alpha"), names).modules[0].targets[0].spec.path == "a.b_c"


def test_encoder_without_number_is_refused_where_there_are_two() -> None:
    """Both CLIPs have the module; a guess would be right half of the time."""
    spec = pipeline_spec(text_encoder=clip, text_encoder_2=clip_with_projection)

    with pytest.raises(AdapterTensorError, match=r"text_encoder\.enc.* or text_encoder_2\."):
        bind(empty("encoder.layers.0.self_attn.q_proj.alpha"), ModuleNames(spec))


def test_split_and_fused_modules_of_one_file_are_refused_together() -> None:
    """Some exports hold both; to add both would double the change."""
    names = ModuleNames(spec_of(flux2))
    fused, split = "double_blocks.0.img_attn.qkv.alpha", "transformer_blocks.0.attn.to_k.alpha"

    with pytest.raises(AdapterTensorError, match=f"{split}.*{fused}"):
        bind(empty(fused, split), names)


def test_parts_of_one_module_may_come_apart() -> None:
    """Three modules of the file on thirds of one module change nothing twice."""
    sizes = [("double_blocks.0.img_attn.qkv", 4, 12), ("double_stream_modulation_img.lin", 4, 8)]
    keys = [f"transformer_blocks.0.attn.to_{name}.alpha" for name in "qkv"]

    binding = bind(empty(*keys), names_of(tree(sizes)))

    assert [module.targets[0].at for module in binding.modules] == [0, 4, 8]


@pytest.mark.parametrize(
    "key", ["a.q.oft_blocks", "lycoris_a_q.oft_blocks", "elsewhere.oft_blocks"]
)
def test_algorithm_that_is_not_served_is_refused_by_name(key: str) -> None:
    """Wherever it is in the model, and whatever else is in the file."""
    with pytest.raises(AdapterTensorError, match=f"{key}.*OFT"):
        bound("a.q.lokr_w1", key)


def test_module_with_the_name_of_an_algorithm_is_a_module() -> None:
    """GLoRA's ``a1.weight`` is an ordinary parameter where the base has a module ``a1``."""
    binding = bind(empty("block.a1.weight"), names_of(tree([("block.a1", 4, 4)])))

    assert binding.modules[0].name == "block.a1"


@pytest.mark.parametrize(
    ("key", "is_peft"),
    [
        ("base_model.model.a.q.lokr_w1", True),
        ("a.q.lora_A.weight", True),
        ("a.q.alpha", False),
        ("lora_unet_a_q.lokr_w1", False),
        ("lora_te1_a_q.lokr_w1", False),
        ("lycoris_a_q.lokr_w1", False),
        ("a.q.lora_up.weight", False),
    ],
)
def test_files_of_peft_are_known_by_their_keys(key: str, is_peft: bool) -> None:
    """PEFT alone keeps the scale out of the file, so such a file without its config has none."""
    assert is_peft_style(["a.k.lokr_w1", key]) is is_peft

"""Which modules carry adapters, under which paths, and which are refused by name."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import Llama4TextConfig
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.llama4.modeling_llama4 import Llama4Router

from lokr_core import LokrError, attach
from lokr_core.layers.discover import discover
from lokr_core.spec import ModuleKind
from tests.core.factors import make_base
from tests.tiny import tiny_gpt2


@dataclass
class Pipeline:
    """What a diffusers pipeline looks like from outside."""

    components: dict[str, object]


def test_paths_are_those_of_named_modules() -> None:
    """Files name their modules by these paths."""
    model = make_base()

    spec = discover(model)

    assert list(spec.modules) == ["first", "second", "head"]
    for path, module in spec.modules.items():
        assert model.get_submodule(path) is module.module


def test_components_are_in_front_of_paths() -> None:
    """Two encoders of one pipeline have modules of the same name."""
    parts = {"unet": make_base(), "text_encoder": nn.Linear(3, 3), "scheduler": object()}
    modules = {k: v for k, v in parts.items() if isinstance(v, nn.Module)}

    of_mapping, of_pipeline = discover(modules), discover(Pipeline(parts))

    assert list(of_mapping.modules) == ["unet.first", "unet.second", "unet.head", "text_encoder"]
    assert list(of_pipeline.modules) == list(of_mapping.modules)


def test_a_linear_model_has_the_empty_path() -> None:
    """The root is a module like any other."""
    assert list(discover(nn.Linear(3, 3)).modules) == [""]


@pytest.mark.parametrize("model", [object(), Pipeline(components={}), {"a": nn.ReLU()}, 3])
def test_what_is_no_model_is_refused(model: object) -> None:
    """Attaching to nothing would serve the base under every adapter's name."""
    with pytest.raises(LokrError, match=r"not a module or a pipeline|no linear module"):
        discover(model)


def test_conv1d_is_seen_as_a_linear_layer() -> None:
    """GPT-2 keeps its weights as [I, O]; the specs show them as [O, I]."""
    module = discover(tiny_gpt2()).modules["transformer.h.0.attn.c_attn"]

    assert module.kind is ModuleKind.CONV1D
    assert (module.out_features, module.in_features) == (192, 64)
    assert module.to_base_layout(module.weight).shape == (64, 192)
    assert module.bias is not None


def test_the_compute_dtype_follows_the_widest_weight() -> None:
    """Half-precision bases are computed in float32, a float64 base in float64."""
    single = discover(nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2)))
    half = discover(nn.Linear(2, 2, dtype=torch.bfloat16, bias=False))

    assert single.dtype == single.compute_dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert half.compute_dtype == torch.float32
    assert half.modules[""].bias is None
    assert discover(make_base()).compute_dtype == torch.float64


def test_linear_modules_that_compute_more_are_refused_by_name() -> None:
    """A router chooses experts by its product; a change added behind that would be a guess."""
    config = Llama4TextConfig(hidden_size=4, num_local_experts=2)
    model = nn.ModuleDict({"router": Llama4Router(config), "falcon": FalconLinear(4, 4)})

    modules = attach(model).spec.modules

    assert modules["router"].refusal == "Llama4Router computes more than a product"
    assert modules["falcon"].refusal is None


def test_attention_projection_is_refused_by_name() -> None:
    """nn.MultiheadAttention uses out_proj's weight without calling it."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(4, 4)})

    modules = attach(model).spec.modules

    assert modules["attention.out_proj"].refusal is not None
    assert "MultiheadAttention" in modules["attention.out_proj"].refusal
    assert modules["linear"].refusal is None
    assert "forward" not in vars(model["attention"].get_submodule("out_proj"))


def test_fast_path_layers_of_torch_are_refused_by_name() -> None:
    """In evaluation nn.TransformerEncoderLayer passes its weights to one fused operation."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    modules = attach(nn.Sequential(layer)).spec.modules

    for path in ("0.linear1", "0.linear2", "0.self_attn.out_proj"):
        assert modules[path].refusal is not None

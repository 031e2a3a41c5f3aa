"""Adapters made by the real trainers, and the models that the trainers themselves make of them.

Every factor is drawn at random and large, since a factor that starts at zero, or a delta of
scale 1, would hide a wrong scale.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.tiny.models import ModelFactory, in_eval

FACTOR_STD = 0.3
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LYCORIS_TARGETS = r".*_proj$"
GPT2_TARGETS = ["c_attn", "c_proj", "c_fc"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainers' warnings about their own dependencies out of the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _randomise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """Draw every factor; a DoRA magnitude is only stretched, so that it stays near its norm."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if "magnitude" in name or "dora_scale" in name:
            parameter.data.mul_(1 + 0.4 * noise)
        else:
            parameter.data.copy_(FACTOR_STD * noise)


def _save_peft(
    make_model: ModelFactory, folder: Path, config: peft.PeftConfig, seed: int, dtype: torch.dtype
) -> Path:
    with _quiet():
        model = peft.get_peft_model(make_model(), config)
    drawn = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _randomise(drawn, seed)
    for parameter in drawn.values():
        parameter.data = parameter.data.to(dtype)
    with _quiet():
        model.save_pretrained(str(folder))
    return folder


def peft_lokr(
    make_model: ModelFactory,
    folder: Path,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a LoKr adapter with PEFT and return its folder; ``config`` overrides LoKrConfig."""
    fields = {"r": 4, "alpha": 3, "target_modules": LLAMA_TARGETS, **config}
    return _save_peft(make_model, folder, peft.LoKrConfig(**fields), seed, dtype)


def peft_loha(
    make_model: ModelFactory,
    folder: Path,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a LoHa adapter with PEFT and return its folder; ``config`` overrides LoHaConfig."""
    fields = {"r": 4, "alpha": 5, "target_modules": LLAMA_TARGETS, **config}
    return _save_peft(make_model, folder, peft.LoHaConfig(**fields), seed, dtype)


def peft_lora(
    make_model: ModelFactory,
    folder: Path,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a LoRA adapter with PEFT and return its folder; ``config`` overrides LoraConfig.

    For GPT-2 pass ``target_modules=GPT2_TARGETS, fan_in_fan_out=True``.
    """
    fields = {"r": 4, "lora_alpha": 6, "target_modules": LLAMA_TARGETS, **config}
    return _save_peft(make_model, folder, peft.LoraConfig(**fields), seed, dtype)


def peft_merged(
    make_model: ModelFactory, folder: Path, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """Return the model that PEFT makes of the base and an adapter, both cast before the merge."""
    base = in_eval(make_model(), dtype)
    with _quiet():
        model = peft.PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
        in_eval(model, dtype).merge_and_unload()
    return base


@dataclass(frozen=True, slots=True, kw_only=True)
class LycorisAdapter:
    """A LyCORIS file and the settings that it was trained with, which its reload cannot guess."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)


def _create_network(model: nn.Module, targets: str, settings: dict[str, Any]) -> LycorisNetwork:
    """Call create_lycoris for the modules whose path matches the pattern, and for no others."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        preset = Path(folder, "preset.toml")
        preset.write_text(f"target_module = []\ntarget_name = ['{targets}']\n", encoding="utf-8")
        network = create_lycoris(model, 1.0, preset=str(preset), **settings)
        network.apply_to()
    return network


def lycoris_file(
    make_model: ModelFactory,
    path: Path,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    targets: str = LYCORIS_TARGETS,
    **options: Any,
) -> LycorisAdapter:
    """Write an adapter with LyCORIS.

    Args:
        make_model: Gives the base.
        path: The safetensors file to write.
        seed: Draws the factors.
        dtype: Dtype of the file's tensors.
        targets: Regular expression over module paths.
        options: ``algo`` ("lokr", "loha" or "locon"), ``dim``, ``alpha``, and what else
            create_lycoris takes, such as ``factor``, ``decompose_both`` or ``dora_wd``.
    """
    named = {"algo": "lokr", "dim": 4, "alpha": 3.0, **options}
    settings = {"linear_dim": named.pop("dim"), "linear_alpha": named.pop("alpha"), **named}
    network = _create_network(make_model(), targets, settings)
    _randomise(dict(network.named_parameters()), seed)
    network.save_weights(str(path), dtype, {})
    return LycorisAdapter(path=path, settings={"targets": targets, **settings})


@torch.no_grad()
def lycoris_merged(
    make_model: ModelFactory, adapter: LycorisAdapter, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """Return the base with the weights that LyCORIS's forward applies.

    LyCORIS's own merge multiplies by the scale twice for LoKr and LoHa, so each weight is read
    off the forward, by the answers to the unit vectors.
    """
    model = in_eval(make_model(), dtype)
    settings = dict(adapter.settings)
    network = _create_network(model, str(settings.pop("targets")), settings).to(dtype)
    missing = network.load_weights(str(adapter.path))
    assert not missing, missing
    weights = {}
    for lora in network.loras:
        linear = lora.org_module[0]
        units = torch.eye(linear.in_features, dtype=dtype)
        weights[linear] = (linear(units) - linear(torch.zeros_like(units))).mT
    network.restore()
    for linear, weight in weights.items():
        linear.weight.data.copy_(weight)
    return model


def conv1d_lokr_file(
    make_model: ModelFactory, path: Path, *, seed: int = 1, rank: int | None = 4
) -> Path:
    """Write a LyCORIS-style LoKr file by hand for GPT-2, whose Conv1D no trainer takes.

    Args:
        make_model: Gives the base.
        path: The safetensors file to write.
        seed: Draws the factors.
        rank: Rank of w2, at scale 3 / rank; None for a full w2, at scale 1.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def draw(key: str, *shape: int) -> None:
        tensors[key] = FACTOR_STD * torch.randn(*shape, generator=generator)

    for name, weight in _conv1d_weights(make_model()).items():
        key = "lycoris_" + name.replace(".", "_")
        num_in, num_out = weight.shape  # stored [I, O]
        tensors[f"{key}.alpha"] = torch.tensor(3.0)
        draw(f"{key}.lokr_w1", 8, 4)
        if rank is None:
            draw(f"{key}.lokr_w2", num_out // 8, num_in // 4)
        else:
            draw(f"{key}.lokr_w2_a", num_out // 8, rank)
            draw(f"{key}.lokr_w2_b", rank, num_in // 4)
    save_file(tensors, path)
    return path


def _conv1d_weights(model: nn.Module) -> dict[str, Tensor]:
    pattern = re.compile(r".*\.(?:c_attn|c_proj|c_fc)\.weight$")
    return {
        name.removesuffix(".weight"): parameter.data
        for name, parameter in model.named_parameters()
        if pattern.match(name)
    }


def conv1d_lokr_merged(
    make_model: ModelFactory, path: Path, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """Return the GPT-2 with a file of :func:`conv1d_lokr_file` merged by ``torch.kron``."""
    model = in_eval(make_model(), dtype)
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    for name, weight in _conv1d_weights(model).items():
        key = "lycoris_" + name.replace(".", "_")
        scale, w2 = 1.0, tensors.get(f"{key}.lokr_w2")
        if w2 is None:
            a, b = tensors[f"{key}.lokr_w2_a"], tensors[f"{key}.lokr_w2_b"]
            scale, w2 = float(tensors[f"{key}.alpha"]) / b.shape[0], a @ b
        weight.add_(scale * torch.kron(tensors[f"{key}.lokr_w1"], w2).mT)
    return model

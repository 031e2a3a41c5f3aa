"""Adapters of pipelines by the real trainers, and the weights that each trainer makes of them.

Every merge runs in float64, and nothing of ours takes part in it.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import _collate_lora_metadata
from lycoris.kohya import LycorisNetworkKohya
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.oracle.images.trained import (
    Holder,
    ImageFamily,
    component,
    deltas,
    draw,
    trained_paths,
)

Changes = Mapping[str, Tensor]  # by parameter name, at weight 1, in float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """An adapter on disk, and the change that its trainer makes."""

    path: Path
    changes: Changes


Write = Callable[[ImageFamily, Path, int], Written]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the trainers' words about their own dependencies out of the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("LyCORIS").setLevel(logging.ERROR)
        yield


# So that a change is nearly as large as what it changes, and a wrong scale is loud.
_STDS = {"lokr": 0.25, "loha": 0.38, "lora": 0.15}
_ALPHAS = {"lora": "lora_alpha"}


def peft_adapter(algorithm: str, **options: Any) -> Write:
    """Return a way to train all components as one module with PEFT."""

    def write(family: ImageFamily, folder: Path, seed: int) -> Written:
        holder = Holder(family, torch.float32)
        alpha = {_ALPHAS.get(algorithm, "alpha"): 6}
        fields = {"r": 4, **alpha, "target_modules": trained_paths(holder), **options}
        config = peft.get_peft_config({"peft_type": algorithm.upper(), **fields})
        with quiet():
            model = peft.get_peft_model(holder, config)
        draw(model, seed, _STDS[algorithm])
        # The card is a text for people, and takes longer than all the rest.
        with quiet(), patch.object(model, "create_or_update_model_card"):
            model.save_pretrained(str(folder))
        return Written(path=folder, changes=_peft_changes(family, folder))

    return write


def _peft_changes(family: ImageFamily, folder: Path) -> Changes:
    holder = Holder(family, torch.float64)
    base = holder.weights()
    with quiet():
        model = peft.PeftModel.from_pretrained(holder, str(folder), autocast_adapter_dtype=False)
        nn.Module.to(model, torch.float64)
        model.merge_and_unload()
    return deltas(holder.weights(), base)


def lycoris_adapter(algorithm: str, **options: Any) -> Write:
    """Return a way to train all components with LyCORIS, as kohya's scripts do."""

    def write(family: ImageFamily, folder: Path, seed: int) -> Written:
        path = folder.with_suffix(".safetensors")
        network = _network(family, Holder(family, torch.float32), algorithm, options)
        draw(network, seed, _STDS[algorithm])
        network.save_weights(str(path), torch.float32, {})
        changes = _lycoris_changes(family, path, algorithm, options)
        return Written(path=path, changes=changes)

    return write


def _network(
    family: ImageFamily, holder: Holder, algorithm: str, options: Mapping[str, Any]
) -> LycorisNetworkKohya:
    """Return a network over the trained modules, and over no others."""
    encoders = [component(holder.pipeline, name) for name in family.encoders]
    denoiser = component(holder.pipeline, family.denoiser)
    LycorisNetworkKohya.apply_preset(  # kept in the class: every key is set, so that none stays
        {
            "enable_conv": True,
            "unet_target_module": [],
            "unet_target_name": trained_paths(denoiser),
            "text_encoder_target_module": [],
            "text_encoder_target_name": [p for e in encoders for p in trained_paths(e)],
            "module_algo_map": {},
            "name_algo_map": {},
            "use_fnmatch": False,
            "exclude_name": [],
        }
    )
    with quiet():
        network = LycorisNetworkKohya(
            encoders,
            denoiser,
            network_module=algorithm,
            warn_on_unmatched=False,
            **{"lora_dim": 4, "conv_lora_dim": 4, "alpha": 3.0, "conv_alpha": 3.0, **options},
        )
        network.apply_to(encoders, denoiser, True, True)
    assert len(network.loras) == len(trained_paths(holder))
    return network


@torch.no_grad()
def _lycoris_changes(
    family: ImageFamily, path: Path, algorithm: str, options: Mapping[str, Any]
) -> Changes:
    """Read each weight off LyCORIS's forward; its merge multiplies by the scale twice."""
    holder = Holder(family, torch.float64)
    base, modules = holder.weights(), dict(holder.named_modules())
    trained = {path: modules[path] for path in trained_paths(holder)}
    network = _network(family, holder, algorithm, options).to(torch.float64)
    missing = network.load_weights(str(path))
    assert not missing, missing
    return {f"{p}.weight": applied_weight(m) - base[f"{p}.weight"] for p, m in trained.items()}


def applied_weight(module: nn.Module) -> Tensor:
    """Return the weight that a linear module or a convolution applies, by its answers to units."""
    if isinstance(module, nn.Linear):
        units = torch.eye(module.in_features, dtype=torch.float64)
        rows: Tensor = module(units) - module(torch.zeros_like(units))
        return rows.mT
    assert isinstance(module, nn.Conv2d)
    return _applied_kernel(module)


def _applied_kernel(conv: nn.Conv2d) -> Tensor:
    """Place a unit under each weight of one output pixel, and read that pixel."""
    (height, width), (up, left), stride = conv.kernel_size, _padding(conv), conv.stride
    row, column = -(-up // stride[0]), -(-left // stride[1])  # whose window has no padding
    top, start = row * stride[0] - up, column * stride[1] - left
    num_weights = conv.in_channels * height * width
    shape = (num_weights, conv.in_channels, top + height, start + width)
    images = torch.zeros(shape, dtype=torch.float64)
    units = torch.eye(num_weights, dtype=torch.float64)
    images[:, :, top:, start:] = units.view(num_weights, conv.in_channels, height, width)
    answers: Tensor = conv(images) - conv(torch.zeros_like(images))
    return answers[:, :, row, column].mT.reshape(conv.weight.shape)  # [O, I, K, K]


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    padding = conv.padding
    assert not isinstance(padding, str)
    return padding[0], padding[1]


def diffusers_adapter(**options: Any) -> Write:
    """Return a way to train a LoRA in diffusers, which its pipeline saves, loads and fuses."""

    def write(family: ImageFamily, folder: Path, seed: int) -> Written:
        holder = Holder(family, torch.float32)
        names = (family.denoiser, *family.diffusers_encoders)
        trained = {name: component(holder.pipeline, name) for name in names}
        for module in trained.values():
            fields = {"r": 4, "lora_alpha": 6, "target_modules": trained_paths(module), **options}
            module.requires_grad_(False)
            with quiet():
                _add_adapter(module, peft.LoraConfig(**fields))
            draw(module, seed, _STDS["lora"])
        layers = {f"{n}_lora_layers": get_peft_model_state_dict(m) for n, m in trained.items()}
        holder.pipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(trained))
        path = folder / "pytorch_lora_weights.safetensors"
        return Written(path=path, changes=_diffusers_changes(family, path, names))

    return write


def _add_adapter(module: nn.Module, config: peft.LoraConfig) -> None:
    """Add a LoRA by the module's own means: of diffusers, or of transformers."""
    assert isinstance(module, (ModelMixin, PreTrainedModel))
    module.add_adapter(config)


def diffusers_lokr() -> Write:
    """Return a way to train a LoKr of the denoiser with LyCORIS, which diffusers loads and fuses.

    The names are those that diffusers takes: modules of the blocks, with their own paths. It
    multiplies factors by the scale in float32, which is exact for this one.
    """

    def write(family: ImageFamily, folder: Path, seed: int) -> Written:
        path = folder.with_suffix(".safetensors")
        holder = Holder(family, torch.float32)
        network = _network(family, holder, "lokr", {"factor": 4, "alpha": 2.0})
        draw(network, seed, _STDS["lokr"])
        network.save_weights(str(path), torch.float32, {})
        denoiser = component(holder.pipeline, family.denoiser)
        spelled = {
            f"lora_unet_{p.replace('.', '_')}": f"diffusion_model.{p}" if p[:6] == "layers" else p
            for p in trained_paths(denoiser)
            if "blocks" in p or "layers" in p
        }
        tensors = {
            f"{spelled[name]}.{leaf}": tensor
            for (name, leaf), tensor in _split(load_file(path)).items()
            if name in spelled
        }
        save_file(tensors, path)
        return Written(path=path, changes=_diffusers_changes(family, path, (family.denoiser,)))

    return write


def _split(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    parts = {key: key.partition(".") for key in tensors}
    return {(name, leaf): tensors[key] for key, (name, _, leaf) in parts.items()}


def _diffusers_changes(family: ImageFamily, path: Path, names: tuple[str, ...]) -> Changes:
    holder = Holder(family, torch.float64)
    base, pipeline = holder.weights(), holder.pipeline
    with quiet():
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        for name in names:
            nn.Module.to(component(pipeline, name), torch.float64)
        pipeline.fuse_lora(components=list(names))
        pipeline.unload_lora_weights()
    return deltas(holder.weights(), base)


KINDS: Mapping[str, Write] = {
    "peft-lokr": peft_adapter("lokr"),
    "peft-lokr-both": peft_adapter("lokr", r=2, decompose_both=True, decompose_factor=4),
    "peft-loha": peft_adapter("loha"),
    "peft-dora": peft_adapter("lora", use_dora=True),
    "lycoris-lokr": lycoris_adapter("lokr", factor=4),
    "lycoris-lokr-full": lycoris_adapter("lokr", full_matrix=True),
    "lycoris-lokr-dora": lycoris_adapter("lokr", weight_decompose=True, wd_on_out=True),
    "lycoris-loha": lycoris_adapter("loha"),
    "diffusers-lora": diffusers_adapter(),
    "diffusers-lora-rank-stabilised": diffusers_adapter(use_rslora=True),
    "diffusers-lokr": diffusers_lokr(),
}


def kinds_of(family: ImageFamily) -> list[str]:
    """Return the kinds of files that a family can have."""
    return [kind for kind in KINDS if kind != "diffusers-lokr" or family.has_diffusers_lokr]

"""Files that diffusers reads or writes do here what they do there."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_pipeline import (
    StableDiffusionXLLoraLoaderMixin,
    ZImageLoraLoaderMixin,
)
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.training_utils import _collate_lora_metadata
from lycoris.utils import convert_diffusers_name_to_compvis
from peft import get_peft_config
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

import lokr_core
from lokr_core import AdapterMix
from tests.core.names.bases import sdxl, z_image
from tests.parity.compare import DTYPES, TOLERANCES, WAYS
from tests.parity.trained import quiet, randomise

ROWS = 3
Tensors = Mapping[str, Tensor]


def _base(make: Callable[[], object], dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    assert isinstance(model, nn.Module)
    return nn.Module.eval(nn.Module.to(model, dtype))


def _lora(name: str, module: nn.Linear | nn.Conv2d, generator: torch.Generator) -> Tensors:
    """Return a kohya LoRA of rank 2 and scale 1.5 for one module."""
    num_out, num_in, *kernel = module.weight.shape
    up = torch.randn(num_out, 2, *(1 for _ in kernel), generator=generator)
    return {
        f"{name}.lora_up.weight": 0.3 * up,
        f"{name}.lora_down.weight": 0.3 * torch.randn(2, num_in, *kernel, generator=generator),
        f"{name}.alpha": torch.tensor(3.0),
    }


def _is_trained(path: str) -> bool:
    return any(part in path for part in (".attn", ".ff.", "proj_in", ".conv1", "time_emb_proj"))


def _kohya_sdxl(unet: nn.Module) -> Tensors:
    """Return a file as kohya's scripts train one: every name in that of SDXL's first code."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for path, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and _is_trained(path):
            flat = f"lora_unet_{path.replace('.', '_')}"
            tensors |= _lora(convert_diffusers_name_to_compvis(flat), module, generator)
    return tensors


def _unet_answer(unet: nn.Module, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=generator).to(dtype)

    more = {"text_embeds": draw(6), "time_ids": draw(3)}
    answer = unet(draw(4, 8, 8), torch.tensor(7), draw(3, 6), added_cond_kwargs=more)[0]
    assert isinstance(answer, Tensor)
    return answer.double()


def _check(
    path: Path,
    wanted: Tensor,
    make: Callable[[], object],
    answer: Callable[[nn.Module, torch.dtype], Tensor],
    component: str,
) -> None:
    """Check the first row of a batch against diffusers, and the others against the base."""
    for dtype in DTYPES:
        base = _base(make, dtype)
        plain = answer(base, dtype)
        adapted = lokr_core.attach({component: base})
        adapter = lokr_core.read_adapter(path, adapted.spec, "a")
        adapted.add(adapter)
        change = wanted[0] - _base_answer(make, answer)[0]
        for way in WAYS:
            with adapted.using([AdapterMix.of({adapter: 1.0}), *[AdapterMix()] * 2], apply=way):
                found = answer(base, dtype) - plain
            assert not found[1:].any()
            assert (found[0] - change).norm() <= 10 * TOLERANCES[dtype] * change.norm()


def _base_answer(
    make: Callable[[], object], answer: Callable[[nn.Module, torch.dtype], Tensor]
) -> Tensor:
    return answer(_base(make, torch.float64), torch.float64)


@torch.no_grad()
def test_kohya_file_of_sdxl_is_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    """Attention, feed-forward and convolutions, all under names that diffusers does not have."""
    unet = _base(sdxl, torch.float64)
    tensors = _kohya_sdxl(unet)
    save_file(dict(tensors), tmp_path / "a.safetensors")
    with quiet():
        converted, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            dict(tensors), unet_config=unet.config
        )
        assert isinstance(unet, PeftAdapterMixin)
        unet.load_lora_adapter(converted, prefix="unet", network_alphas=alphas)
    wanted = _unet_answer(nn.Module.to(unet, torch.float64), torch.float64)

    _check(tmp_path / "a.safetensors", wanted, sdxl, _unet_answer, "unet")


@torch.no_grad()
def test_old_diffusers_spelling_is_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    """Before PEFT, diffusers wrote ``lora.down`` and ``lora.up``, without an alpha: scale 1."""
    unet = _base(sdxl, torch.float64)
    with quiet():
        converted, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            dict(_kohya_sdxl(unet)), unet_config=unet.config
        )
    save_file(converted, tmp_path / "a.safetensors")
    assert isinstance(unet, PeftAdapterMixin)
    with quiet():
        unet.load_lora_adapter(converted, prefix="unet")
    wanted = _unet_answer(nn.Module.to(unet, torch.float64), torch.float64)

    _check(tmp_path / "a.safetensors", wanted, sdxl, _unet_answer, "unet")


CONFIGS: Mapping[str, Mapping[str, object]] = {
    "plain": {"r": 2, "lora_alpha": 3},
    "ranks by pattern": {
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {"to_q": 3},
        "alpha_pattern": {"to_k": 1},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 1, "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 3, "use_dora": True},
}


@pytest.mark.parametrize(
    ("name", "by_pipeline"), [*((name, True) for name in CONFIGS), ("ranks by pattern", False)]
)
@torch.no_grad()
def test_file_saved_by_diffusers_has_its_scale_in_the_metadata(
    tmp_path: Path, name: str, by_pipeline: bool
) -> None:
    """The tensors are PEFT's, without its folder: what it says of alpha is in the header."""
    unet = _base(sdxl, torch.float64)
    assert isinstance(unet, PeftAdapterMixin)
    fields = {**CONFIGS[name], "target_modules": ["to_q", "to_k", "to_out.0", "conv1"]}
    unet.add_adapter(get_peft_config({"peft_type": "LORA", **fields}))
    factors = {name: p for name, p in unet.named_parameters() if "lora" in name}
    randomise(factors.items(), 1, torch.float32)
    nn.Module.to(unet, torch.float32)
    if by_pipeline:
        StableDiffusionXLLoraLoaderMixin.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(unet),
            **_collate_lora_metadata({"unet": unet}),
        )
    else:
        unet.save_lora_adapter(tmp_path)
    wanted = _unet_answer(nn.Module.eval(nn.Module.to(unet, torch.float64)), torch.float64)

    path = tmp_path / "pytorch_lora_weights.safetensors"
    _check(path, wanted, sdxl, _unet_answer, "unet")


LINEARS = ("attention.to_q", "attention.to_out.0", "feed_forward.w1", "adaLN_modulation.0")


def _z_image_answer(model: nn.Module, dtype: torch.dtype) -> Tensor:
    x = torch.randn(ROWS, 2, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    answers = [model.get_submodule(f"layers.0.{path}")(x) for path in LINEARS]
    return torch.cat(answers, -1).double()


@torch.no_grad()
def test_lokr_of_z_image_is_what_diffusers_reads_in_it(tmp_path: Path) -> None:
    """As ai-toolkit writes it: dotted names after ``diffusion_model``, and an alpha for each."""
    model, generator = _base(z_image, torch.float64), torch.Generator().manual_seed(4)
    tensors = {}
    for path in LINEARS:
        num_out, num_in = model.get_parameter(f"layers.0.{path}.weight").shape
        key = f"diffusion_model.layers.0.{path}"
        tensors[f"{key}.lokr_w1"] = torch.randn(2, 2, generator=generator)
        tensors[f"{key}.lokr_w2_a"] = 0.3 * torch.randn(num_out // 2, 2, generator=generator)
        tensors[f"{key}.lokr_w2_b"] = 0.3 * torch.randn(2, num_in // 2, generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(4.0)  # diffusers folds it into w1, in float32
    save_file(tensors, tmp_path / "a.safetensors")
    with quiet():
        converted = ZImageLoraLoaderMixin.lora_state_dict(dict(tensors))
        ZImageLoraLoaderMixin.load_lora_into_transformer(converted, transformer=model)
    wanted = _z_image_answer(nn.Module.to(model, torch.float64), torch.float64)

    _check(tmp_path / "a.safetensors", wanted, z_image, _z_image_answer, "transformer")

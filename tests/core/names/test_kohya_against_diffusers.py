"""Underscore names: the modules and rows that diffusers' readers of kohya's LoRA files pick."""

from collections.abc import Callable

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from torch import Tensor

from lokr_core.formats.names import ModuleNames
from lokr_core.spec import ModuleKind
from tests.core.names.bases import Maker, flux1, flux2, qwen_image, spec_of, wan, z_image
from tests.core.names.rows import found, original_names, reached

Reader = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def convert_qwen(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of musubi-tuner for Qwen-Image."""
    converted: dict[str, Tensor] = (
        lora_conversion_utils._convert_non_diffusers_qwen_lora_to_diffusers(file)
    )
    return converted


def convert_flux1(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of sd-scripts for FLUX.1."""
    converted: dict[str, Tensor] = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(file)
    return converted


def convert_flux2(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of musubi-tuner for FLUX.2."""
    converted: dict[str, Tensor] = lora_conversion_utils._convert_kohya_flux2_lora_to_diffusers(
        file
    )
    return converted


def convert_z_image(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of musubi-tuner for Z-Image."""
    converted: dict[str, Tensor] = (
        lora_conversion_utils._convert_non_diffusers_z_image_lora_to_diffusers(file)
    )
    return converted


def convert_wan(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of musubi-tuner for Wan."""
    converted: dict[str, Tensor] = lora_conversion_utils._convert_musubi_wan_lora_to_diffusers(file)
    return converted


@pytest.mark.parametrize(
    ("make", "convert", "roots"),
    [
        (qwen_image, convert_qwen, ("",)),
        (flux1, convert_flux1, ("double_blocks.", "single_blocks.", "img_in", "txt_in", "time_in")),
        (flux2, convert_flux2, ("double_blocks.", "single_blocks.", "img_in", "txt_in")),
        (z_image, convert_z_image, ("layers.0.feed_forward", "layers.0.attention.out")),
        (wan, convert_wan, ("blocks.",)),
    ],
    ids=["qwen_image", "flux1", "flux2", "z_image", "wan"],
)
def test_underscore_names_reach_what_diffusers_reaches(
    make: Maker, convert: Reader, roots: tuple[str, ...]
) -> None:
    """Its readers take such names apart by tables; ours are looked up, and must agree."""
    spec = spec_of(make)
    names = ModuleNames(spec)
    file: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for index, original in enumerate(original_names(spec)):
        name = f"lora_unet_{original.replace('.', '_')}"
        module = found(names, name)
        if module.targets[0].spec.kind is ModuleKind.LINEAR and original.startswith(roots):
            ids = 100_000.0 * index + torch.arange(module.out_features)
            file[f"{name}.lora_up.weight"] = ids.double()[:, None]
            file[f"{name}.lora_down.weight"] = torch.ones(1, 1, dtype=torch.float64)
            file[f"{name}.alpha"] = torch.tensor(1.0)
            expected |= {path: 100_000.0 * index + rows for path, rows in reached(module).items()}

    converted = convert(file)

    rows = {
        key.removeprefix("transformer.").removesuffix(".lora_B.weight"): value[:, 0]
        for key, value in converted.items()
        if key.endswith(".lora_B.weight")
    }
    assert set(rows) == set(expected)
    assert all(torch.equal(rows[path], expected[path].double()) for path in rows)

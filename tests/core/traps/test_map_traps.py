"""Traps in the names that one model has in its original code, in diffusers and in transformers."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from lycoris.utils import convert_diffusers_name_to_compvis
from torch import Tensor, nn

from lokr_core.errors import AdapterTensorError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import draw, write
from tests.core.names.bases import clip, flux2, sd15, sdxl, spec_of
from tests.parity.fused import FUSIONS, fused_base, split_base, swapped
from tests.parity.lycoris_peer import Lycoris


def _lora(module: str, num_out: int, num_in: int) -> dict[str, Tensor]:
    """Return a LoRA of kohya's spelling, at scale 1."""
    return {
        f"{module}.lora_up.weight": draw(num_out, 2, seed=1),
        f"{module}.lora_down.weight": draw(2, num_in, seed=2),
        f"{module}.alpha": torch.tensor(2.0),
    }


@pytest.mark.parametrize("name", ["text_model_encoder_layers_0", "encoder_layers_0"])
def test_trap_17_clip_is_found_with_and_without_text_model(tmp_path: Path, name: str) -> None:
    """Newer transformers have no such module, files have it: other programs then find nothing."""
    path = write(tmp_path, _lora(f"lora_te_{name}_self_attn_q_proj", 8, 8))

    adapter = read_adapter(path, discover({"text_encoder": clip(8)}))

    (module,) = adapter.modules()
    assert module.startswith("text_encoder.")
    assert module.endswith("encoder.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
@pytest.mark.parametrize("is_original", [True, False], ids=["original", "diffusers"])
def test_trap_18_kohya_files_have_names_of_either_kind(
    tmp_path: Path, name: str, is_original: bool
) -> None:
    """SDXL is trained under the names of its first code, SD 1.5 under those of diffusers."""
    spec = spec_of({"sdxl": sdxl, "sd15": sd15}[name])
    wanted = {
        f"lora_unet_{path.replace('.', '_')}": path
        for path in spec.modules
        if path.endswith(("to_q", "to_out.0", "proj_in", "ff.net.2", "time_emb_proj"))
    }
    if is_original:
        wanted = {convert_diffusers_name_to_compvis(name): path for name, path in wanted.items()}
    tensors: dict[str, Tensor] = {}
    for module, path in wanted.items():
        num_out, columns = spec.modules[path].shape
        size = spec.modules[path].kernel
        up, down = (
            draw(num_out, 2, *(1 for _ in size)),
            draw(2, columns // torch.Size(size).numel(), *size),
        )
        tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
        tensors[f"{module}.alpha"] = torch.tensor(2.0)

    adapter = read_adapter(write(tmp_path, tensors), spec)

    assert set(adapter.modules()) == set(wanted.values())


@pytest.mark.parametrize("name", ["qkv of images", "qkv and mlp, unequal"])
def test_trap_19_fused_projections_are_cut_where_the_base_cuts_them(
    tmp_path: Path, name: str
) -> None:
    """The last part of linear1 is four times as high as the others; thirds would be wrong."""
    fusion = FUSIONS[name]
    trainer = Lycoris(algorithm="lokr", modules={fusion.original: {}})
    fused = fused_base(torch.float64)
    path = trainer.train(fused, tmp_path, seed=1).path
    whole = read_adapter(path, discover(fused_base(torch.float64))).delta_weights()

    deltas = read_adapter(path, discover(split_base(torch.float64))).delta_weights()

    joined = torch.cat([deltas[f"{part}.weight"] for part in fusion.split])
    torch.testing.assert_close(joined, whole[f"{fusion.original}.weight"])


def test_trap_19_flux2_keeps_its_single_blocks_fused(tmp_path: Path) -> None:
    """There diffusers does not split linear1, as it does for FLUX.1."""
    spec = spec_of(flux2)
    path = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    file = write(tmp_path, _lora("lora_unet_single_blocks_0_linear1", *spec.modules[path].shape))

    assert set(read_adapter(file, spec).modules()) == {path}


def test_trap_20_halves_of_the_last_modulation_are_swapped(tmp_path: Path) -> None:
    """Shift and scale have changed places; FLUX.2's own loader in diffusers forgets it."""
    fusion = FUSIONS["swapped halves"]
    trainer = Lycoris(algorithm="lokr", modules={fusion.original: {}})
    path = trainer.train(fused_base(torch.float64), tmp_path, seed=1).path
    whole = read_adapter(path, discover(fused_base(torch.float64))).delta_weights()

    deltas = read_adapter(path, discover(split_base(torch.float64))).delta_weights()

    wanted = swapped(whole[f"{fusion.original}.weight"], dim=0)
    torch.testing.assert_close(deltas[f"{fusion.split[0]}.weight"], wanted)


class _Ambiguous(nn.Module):
    """Two modules whose flattened paths are one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.ModuleList([nn.Linear(6, 6)])
        self.proj = nn.Module()
        self.proj.out_0 = nn.Linear(6, 6)


def test_trap_21_collision_of_flattened_names_is_an_error(tmp_path: Path) -> None:
    """Which of the two was trained cannot be known, so neither is guessed."""
    path = write(tmp_path, _lora("lycoris_proj_out_0", 6, 6))

    with pytest.raises(AdapterTensorError, match=r"proj\.out_0 or proj_out\.0"):
        read_adapter(path, discover(_Ambiguous()))


def test_trap_21_flattened_names_are_never_taken_apart(tmp_path: Path) -> None:
    """Underscores within names and between them look alike; the base's own paths tell."""
    base = nn.Module()
    base.feed_forward = nn.Module()
    base.feed_forward.to_out = nn.ModuleList([nn.Linear(6, 4)])
    path = write(tmp_path, _lora("lycoris_feed_forward_to_out_0", 4, 6))

    assert set(read_adapter(path, discover(base)).modules()) == {"feed_forward.to_out.0"}


class _Inner(nn.Module):
    """A base in whose paths the word that ai-toolkit replaces comes again."""

    def __init__(self) -> None:
        super().__init__()
        self.time_transformer = nn.ModuleDict({"proj": nn.Linear(6, 4)})


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename as ai-toolkit does, on the whole key."""
    return {key.replace("transformer.", "diffusion_model."): t for key, t in tensors.items()}


def test_trap_22_word_replaced_twice_is_found(tmp_path: Path) -> None:
    """The base's own paths are spoilt in the same way, so that such a key finds its module."""
    tensors = _renamed(_lora("transformer.time_transformer.proj", 4, 6))
    spec = discover({"transformer": _Inner()})

    adapter = read_adapter(write(tmp_path, tensors), spec)

    assert "diffusion_model.time_diffusion_model.proj.alpha" in tensors
    assert set(adapter.modules()) == {"transformer.time_transformer.proj"}


def test_trap_22_word_replaced_once_is_found(tmp_path: Path) -> None:
    """Most paths do not hold the word again, with its dot."""
    base = nn.Module()
    base.transformer_blocks = nn.ModuleList([nn.Linear(6, 4)])
    tensors = _renamed(_lora("transformer.transformer_blocks.0", 4, 6))

    adapter = read_adapter(write(tmp_path, tensors), discover({"transformer": base}))

    assert set(adapter.modules()) == {"transformer.transformer_blocks.0"}

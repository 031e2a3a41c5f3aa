"""What a trainer's metadata tells of the scale, and what it must not be taken to tell."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import FLAT_Q, base_spec, draw, full, low_rank, write
from tests.core.formats.test_scale import scale_of, sources

METADATA = {
    "kohya": {"ss_network_module": "lycoris.kohya", "ss_network_dim": "4"},
    "simpletuner": {"lycoris_config": json.dumps({"linear_dim": 4})},
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_metadata_proves_the_alpha_of_two_full_factors(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    """A file that names its dimension tells what the LyCORIS trainer really multiplied by."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q, alpha=8.0), metadata), base_spec())

    assert scale_of(adapter) == 2.0
    assert sources(adapter) == ["alpha/dim of the file's metadata"]
    assert "scale_override" in adapter.warnings[0]


UNTOLD = {
    "alpha rounded in bfloat16": (9984.0, {**METADATA["kohya"], "ss_network_dim": "10000"}),
    "infinite alpha": (float("inf"), METADATA["kohya"]),
    "alpha zero": (0.0, METADATA["kohya"]),
    "another trainer": (8.0, {"ss_network_module": "networks.lora", "ss_network_dim": "4"}),
    "dim that is no number": (8.0, {**METADATA["kohya"], "ss_network_dim": "None"}),
    "dim that is not positive": (8.0, {**METADATA["kohya"], "ss_network_dim": "-4"}),
    "dim that is a fraction": (8.0, {**METADATA["kohya"], "ss_network_dim": "1e-300"}),
    "dim that is missing": (8.0, {"ss_network_module": "lycoris.kohya"}),
    "config that is no JSON": (8.0, {"lycoris_config": "{"}),
    "config that is no object": (8.0, {"lycoris_config": "[4]"}),
    "config without a dim": (8.0, {"lycoris_config": '{"algo": "lokr"}'}),
}


@pytest.mark.parametrize(("alpha", "metadata"), UNTOLD.values(), ids=UNTOLD)
def test_metadata_that_tells_nothing_leaves_two_full_factors_at_one(
    tmp_path: Path, alpha: float, metadata: dict[str, str]
) -> None:
    """Metadata is not reliable enough to be required, nor to be guessed from."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q, alpha=alpha), metadata), base_spec())

    assert scale_of(adapter) == 1.0
    assert adapter.warnings == ()


def conv_file(side: int, alpha: float) -> dict[str, Tensor]:
    """Return a LoKr of two full factors for a convolution of 6 channels to 4."""
    return {
        "lycoris_conv.lokr_w1": draw(2, 3, seed=1),
        "lycoris_conv.lokr_w2": draw(2, 2, side, side, seed=2),
        "lycoris_conv.alpha": torch.tensor(alpha),
    }


@pytest.mark.parametrize(
    ("side", "alpha", "scale"), [(3, 24.0, 1.0), (3, 48.0, 2.0), (1, 32.0, 1.0), (1, 24.0, 0.75)]
)
def test_convolutions_with_a_kernel_have_a_dimension_of_their_own(
    tmp_path: Path, side: int, alpha: float, scale: float
) -> None:
    """LyCORIS takes conv_dim for them, so that network_dim would give a wrong scale."""
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "32",
        "ss_network_args": json.dumps({"conv_dim": "24", "preset": "full"}),
    }
    spec = discover(nn.ModuleDict({"conv": nn.Conv2d(6, 4, side)}))

    adapter = read_adapter(write(tmp_path, conv_file(side, alpha), metadata), spec)

    assert scale_of(adapter) == scale


def _by_name(preset: str) -> dict[str, str]:
    return {**METADATA["kohya"], "ss_network_args": json.dumps({"preset": preset})}


def _whole(preset: object) -> dict[str, str]:
    return {"lycoris_config": json.dumps({"linear_dim": 4, "apply_preset": preset})}


PRESETS = {
    "a file": (_by_name("my_preset.toml"), True),
    "one of LyCORIS's own": (_by_name("attn-mlp"), False),
    "dimensions by class": (_whole({"module_algo_map": {"FeedForward": {"dim": 8}}}), True),
    "dimensions by name": (_whole({"name_algo_map": {"to_q": {"dim": 8}}}), True),
    "factors by class": (_whole({"module_algo_map": {"FeedForward": {"factor": 8}}}), False),
    "no preset that is known": (_whole(["full"]), True),
}


@pytest.mark.parametrize(("metadata", "has_own_dims"), PRESETS.values(), ids=PRESETS)
def test_preset_with_dimensions_of_its_own_leaves_two_full_factors_at_one(
    tmp_path: Path, metadata: dict[str, str], has_own_dims: bool
) -> None:
    """The alpha of such a module is its own dimension, and no scale that it was trained at."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q, alpha=8.0), metadata), base_spec())

    assert scale_of(adapter) == (1.0 if has_own_dims else 2.0)
    assert "scale_override decides" in adapter.warnings[0]


@pytest.mark.parametrize(("rs_lora", "alpha"), [("True", 6.0), ("True", 7.0), ("False", 6.0)])
def test_rs_lora_of_an_older_lycoris_is_reported(
    tmp_path: Path, rs_lora: str, alpha: float
) -> None:
    """It saved alpha as it was set, later ones times the root of the rank: the setting tells."""
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "3",
        "ss_network_alpha": "6",
        "ss_network_args": json.dumps({"rs_lora": rs_lora}),
    }

    adapter = read_adapter(write(tmp_path, low_rank(FLAT_Q, alpha=alpha), metadata), base_spec())

    assert scale_of(adapter) == alpha / 3
    is_told = any("scale_override=3.4641" in warning for warning in adapter.warnings)
    assert is_told == (rs_lora == "True" and alpha == 6)

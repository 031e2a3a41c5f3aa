"""Leaves: every ending of a key means one part of a module, or is refused by its algorithm."""

import pytest

from lokr_core.formats.leaves import KeyParts, split_key, unserved_algorithm

Q = "base_model.model.model.layers.0.self_attn.q_proj"
LEAVES = {
    **{
        leaf: leaf
        for leaf in (
            *(f"lokr_w{i}{part}" for i in (1, 2) for part in ("", "_a", "_b")),
            "lokr_t2",
            *(f"hada_w{i}_{part}" for i in (1, 2) for part in "ab"),
            "hada_t1",
            "hada_t2",
            "alpha",
            "dora_scale",
            "scale",
            "diff",
            "diff_b",
            "w_norm",
            "b_norm",
            "bias_indices",
            "bias_values",
            "bias_size",
            "weight",
            "bias",
            "lora_magnitude_vector",
            "lora_embedding_A",
            "lora_embedding_B",
        )
    },
    "lokr_w1.default": "lokr_w1",
    "lokr_w2_a.my-adapter": "lokr_w2_a",
    "lokr_w2_b.weight": "lokr_w2_b",
    "lokr_t2.default.weight": "lokr_t2",
    "hada_w1_a.default": "hada_w1_a",
    "hada_t1.default": "hada_t1",
    "lora_up.weight": "lora_up",
    "lora_down.weight": "lora_down",
    "lora_mid.weight": "lora_mid",
    "lora_A.weight": "lora_down",
    "lora_B.weight": "lora_up",
    "lora_A.default.weight": "lora_down",
    "lora_B.style.weight": "lora_up",
    "lora_B.bias": "lora_up_bias",
    "lora_B.default.bias": "lora_up_bias",
    "lora_up.bias": "lora_up_bias",
    "lora.down.weight": "lora_down",
    "lora.up.weight": "lora_up",
    "lora_linear_layer.down.weight": "lora_down",
    "lora_embedding_A.default": "lora_embedding_A",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "magnitude": "lora_magnitude_vector",
    "modules_to_save.default.weight": "weight",
    "modules_to_save.default.bias": "bias",
    "original_module.weight": "original_weight",
    "original_module.bias": "original_bias",
    "base_layer.weight": "base_weight",
    "base_layer.bias": "base_bias",
}


@pytest.mark.parametrize("ending", LEAVES)
@pytest.mark.parametrize("module", [Q, "lora_unet_mid_block_resnets_0_conv1", "x"])
def test_ending_means_one_leaf(module: str, ending: str) -> None:
    """What trainers write differs by an adapter's name or a suffix; the mathematics does not."""
    assert split_key(f"{module}.{ending}") == KeyParts(module=module, leaf=LEAVES[ending])


def test_old_processor_names_keep_their_layer() -> None:
    """There the LoRA's name is part of the module that the layer is looked up by."""
    parts = split_key("unet.attn1.processor.to_q_lora.up.weight")

    assert parts == KeyParts(module="unet.attn1.processor.to_q_lora", leaf="lora_up")


@pytest.mark.parametrize(
    ("key", "leaf"),
    [
        ("classifier.modules_to_save.default.dense.weight", "weight"),
        ("classifier.original_module.dense.weight", "original_weight"),
        ("classifier.dense.weight", "weight"),
    ],
)
def test_saved_module_may_hold_modules(key: str, leaf: str) -> None:
    """A head of two layers is replaced whole, and its layers are what the base names."""
    assert split_key(key) == KeyParts(module="classifier.dense", leaf=leaf)


@pytest.mark.parametrize("key", ["", "alpha", ".alpha", "lokr_w1", "x.lokr_w3", "x.lora_A", "x."])
def test_other_endings_are_no_leaves(key: str) -> None:
    """What is not understood must come out as such."""
    assert split_key(key) is None


@pytest.mark.parametrize(
    ("ending", "algorithm"),
    [
        ("oft_blocks", "OFT"),
        ("rescale", "OFT"),
        ("oft_R.default.weight", "OFT"),
        ("boft_s", "BOFT"),
        ("a1.weight", "GLoRA"),
        ("bm.weight", "GLoRA"),
        ("on_input", "IA3"),
        ("ia3_l", "IA3"),
        ("q_layer.weight", "T-LoRA"),
        ("lambda_layer", "T-LoRA"),
        ("set_weight", "set_weight"),
        ("reshape_weight", "set_weight"),
        ("lokr_t1", "lokr_t1"),
        ("lora_E", "AdaLoRA"),
        ("vera_lambda_b", "VeRA"),
        ("token_adapter.trainable_tokens_delta", "trainable tokens"),
        ("fourierft_spectrum", "PEFT"),
        ("miss_block.default", "PEFT"),
    ],
)
def test_algorithms_that_are_not_served_have_names(ending: str, algorithm: str) -> None:
    """Who has such a file should read what it is, not that a key is unknown."""
    name = unserved_algorithm(f"{Q}.{ending}")

    assert name is not None
    assert algorithm in name


@pytest.mark.parametrize("ending", LEAVES)
def test_served_leaves_are_of_no_other_algorithm(ending: str) -> None:
    """A name for what we do serve would refuse it."""
    assert unserved_algorithm(f"{Q}.{ending}") is None

"""Keys: every tensor finds its module and its place in it, or is refused by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
    UnmatchedKeysError,
    UnsupportedModuleError,
)
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import (
    FLAT_Q,
    FLAT_V,
    PEFT_Q,
    Q,
    V,
    base_spec,
    full,
    lora,
    low_rank,
    write,
    write_peft,
)


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Return the tensors with one part of their keys replaced."""
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("module", [FLAT_Q, Q, PEFT_Q, f"base_model.model.{FLAT_Q}"])
def test_module_may_be_flattened_or_dotted_or_wrapped(tmp_path: Path, module: str) -> None:
    """The same adapter is met in all these spellings."""
    adapter = read_adapter(write(tmp_path, low_rank(module)), base_spec())

    assert list(adapter.modules()) == [Q]


@pytest.mark.parametrize("suffix", ["", ".default", ".weight", ".default.weight"])
def test_adapter_name_and_weight_may_follow_a_leaf(tmp_path: Path, suffix: str) -> None:
    """Raw dumps of a PEFT model keep the adapter's name in their keys."""
    tensors = {f"{key}{suffix}": t for key, t in low_rank(PEFT_Q, alpha=None).items()}

    adapter = read_adapter(write_peft(tmp_path, tensors), base_spec())

    assert list(adapter.modules()) == [Q]


def test_lora_may_have_the_names_of_peft_or_of_kohya(tmp_path: Path) -> None:
    """Down and A are one thing, up and B another; exchanging them would not even fit."""
    kohya = renamed(renamed(lora(FLAT_Q), "lora_A", "lora_down"), "lora_B", "lora_up")
    kohya[f"{FLAT_Q}.alpha"] = torch.tensor(6.0)
    peft = renamed(lora(PEFT_Q), ".weight", ".default.weight")

    ours = read_adapter(write(tmp_path, kohya), base_spec()).delta_weights()
    theirs = read_adapter(
        write_peft(tmp_path, peft, peft_type="LORA", lora_alpha=6), base_spec()
    ).delta_weights()

    assert torch.equal(ours[f"{Q}.weight"], theirs[f"{Q}.weight"])


def test_unmatched_keys_are_refused_by_name(tmp_path: Path) -> None:
    """Passing over keys without a word is the commonest bug of adapter loaders."""
    tensors = low_rank(FLAT_Q) | {"lycoris_block_k_proj.lokr_w1": torch.ones(2, 3)}

    with pytest.raises(UnmatchedKeysError, match=r"'lycoris_block_k_proj\.lokr_w1'") as raised:
        read_adapter(write(tmp_path, tensors), base_spec())
    assert raised.value.keys == ("lycoris_block_k_proj.lokr_w1",)


@pytest.mark.parametrize(
    "key", [f"{FLAT_Q}.lokr_w3", "something", "embed.weight", f"{Q}.lokr_w1.x.y"]
)
def test_key_with_an_unknown_leaf_is_unmatched(tmp_path: Path, key: str) -> None:
    """A leaf that nobody knows may change anything."""
    with pytest.raises(UnmatchedKeysError, match=key):
        read_adapter(write(tmp_path, low_rank(FLAT_Q) | {key: torch.ones(2, 3)}), base_spec())


def test_partial_leaves_unmatched_keys_out_and_lists_them(tmp_path: Path) -> None:
    """A caller may want the part that fits, and must see which part does not."""
    tensors = low_rank(FLAT_Q) | {"lycoris_block_k_proj.lokr_w1": torch.ones(2, 3)}

    adapter = read_adapter(write(tmp_path, tensors), base_spec(), partial=True)

    assert list(adapter.modules()) == [Q]
    assert adapter.warnings == (
        "1 tensors match no module and were left out: 'lycoris_block_k_proj.lokr_w1'",
    )


def test_warning_of_unmatched_keys_is_short_however_many_there_are(tmp_path: Path) -> None:
    """It is part of every reply about the adapter, and a file may have 50,000 keys."""
    tensors = low_rank(FLAT_Q)
    tensors |= {f"{'字' * 240}{index:04}.lokr_w1": torch.ones(1) for index in range(2000)}

    (warning,) = read_adapter(write(tmp_path, tensors), base_spec(), partial=True).warnings

    assert warning.startswith("2000 tensors match no module and were left out: '字")
    assert warning.endswith("0002.lokr_w1' and 1997 more")
    assert len(warning.encode()) < 2000


def test_partial_does_not_admit_a_file_without_any_match(tmp_path: Path) -> None:
    """Zero modules loaded and no error is what users report of other programs."""
    path = write(tmp_path, low_rank("lycoris_other"))

    with pytest.raises(AdapterFileError, match="holds no tensor that belongs to the base model"):
        read_adapter(path, base_spec(), partial=True)


def test_first_module_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    """An adapter of another base is recognised, even if it has modules that the base lacks."""
    wrong = renamed(full(FLAT_V, alpha=None), "never", "")
    wrong[f"{FLAT_V}.lokr_w1"] = torch.ones(3, 3)
    tensors = wrong | full("lycoris_block_k_proj", alpha=None)

    with pytest.raises(AdapterMismatchError, match=r"block\.v_proj") as raised:
        read_adapter(write(tmp_path, tensors), base_spec())
    assert raised.value.module == V
    assert (raised.value.found, raised.value.expected) == ((12, 12), (8, 12))


def test_mismatch_names_the_first_module_in_the_order_of_the_file(tmp_path: Path) -> None:
    """With several bad modules the report must not depend on the order of the base."""
    tensors = {
        f"{name}.{leaf}": torch.ones(3, 3)
        for name in ("base_model.model.block.v_proj", "lycoris_block_q_proj")
        for leaf in ("lokr_w1", "lokr_w2")
    }

    with pytest.raises(AdapterMismatchError) as raised:
        read_adapter(write(tmp_path, tensors), base_spec())
    assert raised.value.module == V


def test_modules_that_flatten_alike_are_refused(tmp_path: Path) -> None:
    """Underscores cannot be turned back into dots, so such a key has two meanings."""
    base = nn.Module()
    base.a_b = nn.Linear(12, 8)
    base.a = nn.Module()
    base.a.b = nn.Linear(12, 8)
    spec = discover(base)

    with pytest.raises(AdapterTensorError, match=r"'lycoris_a_b\.alpha' may mean .* a\.b or a_b"):
        read_adapter(write(tmp_path, low_rank("lycoris_a_b")), spec)
    assert list(read_adapter(write(tmp_path, low_rank("a.b")), spec).modules()) == ["a.b"]


def test_module_that_cannot_be_routed_is_refused_by_name(tmp_path: Path) -> None:
    """Attention that reads its projection's weight would never call the adapter."""
    base = nn.Module()
    base.attention = nn.MultiheadAttention(8, 2)
    tensors = {
        "attention.out_proj.alpha": torch.tensor(1.0),
        "attention.out_proj.lokr_w1": torch.ones(2, 2),
        "attention.out_proj.lokr_w2": torch.ones(4, 4),
    }

    with pytest.raises(UnsupportedModuleError, match=r"'attention\.out_proj' cannot carry"):
        read_adapter(write(tmp_path, tensors), discover(base))


def test_same_factor_in_two_spellings_is_refused(tmp_path: Path) -> None:
    """Keeping the last one read would depend on the order of the file."""
    with pytest.raises(AdapterTensorError, match="gives the same factor as"):
        read_adapter(write(tmp_path, low_rank(FLAT_Q) | low_rank(Q)), base_spec())


def one(key: str, *shape: int) -> dict[str, Tensor]:
    """Return one tensor of ones."""
    return {key: torch.ones(*shape)}


WRONG = {
    "w1 without w2": (one(f"{FLAT_Q}.lokr_w1", 2, 3), "has no partner 'lokr_w2'"),
    "w2 without w1": (one(f"{FLAT_Q}.lokr_w2", 4, 4), "has no partner 'lokr_w1'"),
    "w1_a without w1_b": (
        {**one(f"{FLAT_Q}.lokr_w1_a", 2, 3), **one(f"{FLAT_Q}.lokr_w2", 4, 4)},
        "has no partner 'lokr_w1_b'",
    ),
    "w2_b without w2_a": (
        {**one(f"{FLAT_Q}.lokr_w1", 2, 3), **one(f"{FLAT_Q}.lokr_w2_b", 4, 4)},
        "has no partner 'lokr_w2_a'",
    ),
    "lora without down": (
        one(f"{FLAT_Q}.lora_up.weight", 8, 2),
        "has no partner lora_down or lora_A",
    ),
    "loha without its second half": (
        {**one(f"{FLAT_Q}.hada_w1_a", 8, 2), **one(f"{FLAT_Q}.hada_w1_b", 2, 12)},
        "has no partner 'hada_w2_a'",
    ),
    "two forms of w2": (low_rank(FLAT_Q) | full(FLAT_Q), "two forms of a factor"),
    "two algorithms": (
        low_rank(FLAT_Q) | lora(FLAT_Q),
        "changes the same module as .* in another way",
    ),
    "alpha alone": (one(f"{FLAT_Q}.alpha", 1), "stands alone"),
    "ranks that differ": (
        low_rank(FLAT_Q) | one(f"{FLAT_Q}.lokr_w2_b", 2, 4),
        r"is \(4, 3\), but its partner .* is \(2, 4\)",
    ),
    "loha halves that differ": (
        {
            **one(f"{FLAT_Q}.hada_w1_a", 8, 2),
            **one(f"{FLAT_Q}.hada_w1_b", 2, 12),
            **one(f"{FLAT_Q}.hada_w2_a", 8, 2),
            **one(f"{FLAT_Q}.hada_w2_b", 2, 10),
        },
        r"gives \(8, 10\), but its first half is \(8, 12\)",
    ),
    "a kernel": (
        {**one(f"{FLAT_Q}.lokr_w1", 2, 3), **one(f"{FLAT_Q}.lokr_w2", 4, 4, 3, 3)},
        "no kernel belongs here",
    ),
    "a vector": (
        {**one(f"{FLAT_Q}.lokr_w1", 6), **one(f"{FLAT_Q}.lokr_w2", 4, 4)},
        r"is \(6,\), but a matrix is needed",
    ),
    "a tucker core": (low_rank(FLAT_Q) | one(f"{FLAT_Q}.lokr_t2", 3, 3, 3, 3), "Tucker core"),
    "a bias delta of another size": (
        low_rank(FLAT_Q) | one(f"{FLAT_Q}.diff_b", 7),
        r"is \(7,\), but its module has 8 outputs",
    ),
    "two bias deltas": (
        low_rank(FLAT_Q) | one(f"{FLAT_Q}.diff_b", 8) | one(f"{FLAT_Q}.b_norm", 8),
        "two biases",
    ),
    "a lora bias alone": (one(f"{PEFT_Q}.lora_B.bias", 8), "has no partner lora_up or lora_B"),
    "a factor of an embedding": (
        one(f"{PEFT_Q}.lora_embedding_A", 2, 9),
        "is for an embedding, which 'block.q_proj' is not",
    ),
    "a t-lora": (one(f"{FLAT_Q}.q_layer.weight", 2, 12), "belongs to T-LoRA"),
    "an oft": (one(f"{FLAT_Q}.oft_blocks", 2, 4, 4), "belongs to OFT"),
    "a part of a sparse residual": (one(f"{FLAT_Q}.bias_indices", 2), "has no partner lora_up"),
}


@pytest.mark.parametrize(("tensors", "problem"), WRONG.values(), ids=WRONG)
def test_tensor_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], problem: str
) -> None:
    """Each of these would change the model in a way that the reader does not know."""
    with pytest.raises(AdapterTensorError, match=problem) as raised:
        read_adapter(write(tmp_path, tensors), base_spec())
    assert raised.value.tensor in tensors


@pytest.mark.parametrize("partial", [False, True])
def test_partial_does_not_admit_what_is_known_but_not_served(tmp_path: Path, partial: bool) -> None:
    """Leaving a trained rotation out would serve another model than was trained."""
    tensors = low_rank(FLAT_Q) | one(f"{FLAT_V}.oft_blocks", 2, 4, 4)

    with pytest.raises(AdapterTensorError, match="belongs to OFT or BOFT"):
        read_adapter(write(tmp_path, tensors), base_spec(), partial=partial)


MAGNITUDES = {
    "of another size": ({"dora_scale": torch.ones(7, 1)}, r"\(7, 1\), which is no magnitude"),
    "of one dimension": ({"dora_scale": torch.ones(8)}, "which is no magnitude"),
    "along neither axis": ({"dora_scale": torch.ones(12, 1)}, "which is no magnitude"),
    "in both names": (
        {"dora_scale": torch.ones(8, 1), "lora_magnitude_vector": torch.ones(8)},
        "two magnitudes",
    ),
    "not finite": ({"dora_scale": torch.full((8, 1), torch.nan)}, "holds NaN"),
}


@pytest.mark.parametrize(("magnitudes", "problem"), MAGNITUDES.values(), ids=MAGNITUDES)
def test_dora_magnitude_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, magnitudes: dict[str, Tensor], problem: str
) -> None:
    """A magnitude along the wrong axis gives noise, not an error, in other programs."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.{leaf}": t for leaf, t in magnitudes.items()}

    with pytest.raises(AdapterTensorError, match=problem):
        read_adapter(write(tmp_path, tensors), base_spec())


def test_dora_over_a_weight_of_norm_zero_is_refused(tmp_path: Path) -> None:
    """PEFT divides by that norm, and would give NaN."""
    spec = base_spec()
    spec.modules[Q].weight.zero_()
    tensors = lora(PEFT_Q) | {f"{PEFT_Q}.lora_magnitude_vector": torch.ones(8)}
    tensors[f"{PEFT_Q}.lora_B.weight"] = torch.zeros(8, 3)
    folder = write_peft(tmp_path, tensors, peft_type="LORA", use_dora=True)

    with pytest.raises(AdapterTensorError, match=r"lora_magnitude_vector' .* norm is zero"):
        read_adapter(folder, spec)

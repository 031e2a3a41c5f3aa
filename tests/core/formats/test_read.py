"""read_adapter as a whole: identity, packing, and what the caller is told."""

import gc
import hashlib
import weakref
from pathlib import Path

import pytest
import torch

from lokr_core.errors import AdapterError, MixError
from lokr_core.formats import read_adapter
from lokr_core.mix import check_adapter_id
from lokr_core.weights import HadamardWeights, LokrWeights
from tests.core.formats.hand_made import (
    FLAT_Q,
    FLAT_V,
    PEFT_Q,
    Q,
    base_spec,
    draw,
    full,
    low_rank,
    write,
    write_peft,
)


def test_id_is_the_name_of_file_or_folder(tmp_path: Path) -> None:
    """What an operator names a file is what requests call it."""
    path = tmp_path / "style.v2.safetensors"
    write(tmp_path, low_rank(FLAT_Q)).rename(path)
    folder = tmp_path / "french"
    folder.mkdir()
    write_peft(folder, full(PEFT_Q, alpha=None))

    assert read_adapter(path, base_spec()).ref.adapter_id == "style.v2"
    assert read_adapter(str(folder), base_spec()).ref.adapter_id == "french"
    assert read_adapter(path, base_spec(), "team/a").ref.adapter_id == "team/a"


def test_id_that_is_malformed_is_refused_before_the_file_is_opened(tmp_path: Path) -> None:
    """The default id of an odd file name must be refused like any other."""
    with pytest.raises(MixError, match="adapter_id: 'my adapter' is no adapter id"):
        read_adapter(tmp_path / "my adapter.safetensors", base_spec())


@pytest.mark.parametrize("adapter_id", ["a", "A9", "a/b.c_d-e/0", "x" * 128])
def test_id_of_letters_digits_and_segments_is_accepted(adapter_id: str) -> None:
    """The grammar is the wire's, and the store's path."""
    assert check_adapter_id(adapter_id) == adapter_id


@pytest.mark.parametrize(
    "adapter_id",
    ["", "/a", "a/", "a//b", "..", "a/../b", ".a", "-a", "a b", "a\n", "ä", "x" * 129],
)
def test_id_with_anything_else_is_refused(adapter_id: str) -> None:
    """An id is part of a path: it must never lead out of the store."""
    with pytest.raises(MixError, match=r"^adapter_id: "):
        check_adapter_id(adapter_id)


def test_version_is_of_content_and_overrides_alone(tmp_path: Path) -> None:
    """A cache keyed by version must neither serve old weights nor lose those that are the same."""
    path = write(tmp_path, low_rank(FLAT_Q))
    first = read_adapter(path, base_spec()).ref.version
    overrides = (
        {"scale_override": 2.0},
        {"alpha": 2.0},
        {"rank": 2},
        {"alpha": 3.0, "rank": 3},
        {"partial": True},
    )
    versions = [read_adapter(path, base_spec(), **given).ref.version for given in overrides]

    assert len(first) == 16
    assert int(first, 16) >= 0
    assert read_adapter(path, base_spec(), "other").ref.version == first
    assert len({first, *versions}) == 6
    assert read_adapter(write(tmp_path, low_rank(FLAT_V)), base_spec()).ref.version != first


def test_version_changes_with_the_config_and_digest_does_not(tmp_path: Path) -> None:
    """The scale is in the configuration; the digest is that of the tensor file."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None))
    first = read_adapter(folder, base_spec())
    second = read_adapter(write_peft(tmp_path, full(PEFT_Q, alpha=None), alpha=7), base_spec())
    content = (folder / "adapter_model.safetensors").read_bytes()

    assert first.ref.version != second.ref.version
    assert first.info.digest == second.info.digest == hashlib.sha256(content).hexdigest()


def test_adapters_of_equal_shapes_share_their_layout(tmp_path: Path) -> None:
    """Thousands of adapters must not keep thousands of descriptions."""
    spec = base_spec()
    path = write(tmp_path, low_rank(FLAT_Q) | low_rank(FLAT_V))
    first = read_adapter(path, spec)
    second = read_adapter(path, spec, scale_override=3)
    other = read_adapter(write(tmp_path, low_rank(FLAT_Q)), spec)

    assert first.layout is second.layout
    assert first.layout is not other.layout


def test_layout_goes_with_the_last_adapter_that_holds_it(tmp_path: Path) -> None:
    """A server that runs for months must not keep the shapes of all that it ever served."""
    spec = base_spec()
    path = write(tmp_path, low_rank(FLAT_Q))
    layout = weakref.ref(read_adapter(path, spec).layout)

    gc.collect()

    assert layout() is None
    assert read_adapter(path, spec).modules().keys() == {Q}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_stay_in_the_precision_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    """Half the bytes is twice the adapters."""
    tensors = {k: t if "alpha" in k else t.to(dtype) for k, t in low_rank(FLAT_Q).items()}

    adapter = read_adapter(write(tmp_path, tensors), base_spec())

    assert adapter.buffer.dtype == dtype
    weights = adapter.module(Q).terms[0].delta
    assert isinstance(weights, LokrWeights)
    assert torch.equal(weights.w1.dense(), tensors[f"{FLAT_Q}.lokr_w1"])


@pytest.mark.parametrize("base", [torch.float32, torch.float64])
def test_factors_are_not_kept_wider_than_they_are_computed_in(
    tmp_path: Path, base: torch.dtype
) -> None:
    """One tensor in double precision would double the bytes of all, to no effect."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.lokr_w1"] = tensors[f"{FLAT_Q}.lokr_w1"].double()

    assert read_adapter(write(tmp_path, tensors), base_spec(base)).buffer.dtype == base


def test_number_that_the_dtype_of_computation_cannot_hold_is_refused(tmp_path: Path) -> None:
    """It would come out as infinity, and every output with it."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.lokr_w1"] = 1e300 * torch.ones(2, 3).double()
    path = write(tmp_path, tensors)

    with pytest.raises(AdapterError, match=rf"'{Q}': .* overflow torch\.float32"):
        read_adapter(path, base_spec())
    assert read_adapter(path, base_spec(torch.float64)).delta_weights()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gain_does_not_widen_a_file_of_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """It needs float32, a few numbers beside many; the many keep their bytes."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.dora_scale": 2 * draw(8, 1).abs() + 0.5}
    narrow = {k: t.to(dtype) for k, t in tensors.items()}
    wide = {k: t.float() for k, t in narrow.items()}

    adapter = read_adapter(write(tmp_path, narrow), base_spec())

    plain = read_adapter(write(tmp_path, wide), base_spec())
    ours, theirs = adapter.module(Q).gain, plain.module(Q).gain
    assert adapter.buffer.dtype == dtype
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours.values, theirs.values, rtol=2e-7, atol=0)


def test_gain_that_half_precision_cannot_hold_in_parts_widens_the_file(tmp_path: Path) -> None:
    """Bytes are worth less than being right."""
    magnitude = torch.full((8, 1), 6e4).half()
    tensors = {k: t.half() for k, t in low_rank(FLAT_Q).items()}
    tensors[f"{FLAT_Q}.dora_scale"] = magnitude
    spec = base_spec()
    spec.modules[Q].weight.mul_(1e-6)
    tensors[f"{FLAT_Q}.lokr_w2_b"] = torch.zeros(3, 4).half()

    adapter = read_adapter(write(tmp_path, tensors), spec)

    gain = adapter.module(Q).gain
    assert adapter.buffer.dtype == torch.float32
    assert gain is not None
    assert bool((gain.values > 1e9).all())


def test_buffer_does_not_keep_the_file_in_memory(tmp_path: Path) -> None:
    """The bytes that were read are freed; the adapter costs what it says it costs."""
    adapter = read_adapter(write(tmp_path, low_rank(FLAT_Q)), base_spec())

    assert adapter.buffer.untyped_storage().nbytes() == adapter.num_bytes


def test_dora_gain_is_computed_once_at_load(tmp_path: Path) -> None:
    """Along inputs or outputs by the shape of the magnitude, also where both sizes agree."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.dora_scale": draw(1, 12)}

    adapter = read_adapter(write(tmp_path, tensors), base_spec())

    gain = adapter.module(Q).gain
    assert gain is not None
    assert gain.values.shape == (12,)
    assert adapter.info.algorithms == ("dora", "lokr")


@pytest.mark.parametrize(("rank", "kind"), [(2, LokrWeights), (3, HadamardWeights)])
def test_loha_is_a_lora_of_squared_rank_unless_that_is_larger(
    tmp_path: Path, rank: int, kind: type
) -> None:
    """Of two exact forms the smaller is kept: rank² (O + I) against O I, here 80 or 180 to 96."""
    tensors = {
        f"{FLAT_Q}.alpha": torch.tensor(1.0),
        f"{FLAT_Q}.hada_w1_a": draw(8, rank, seed=1),
        f"{FLAT_Q}.hada_w1_b": draw(rank, 12, seed=2),
        f"{FLAT_Q}.hada_w2_a": draw(8, rank, seed=3),
        f"{FLAT_Q}.hada_w2_b": draw(rank, 12, seed=4),
    }
    parts = [t.double() for key, t in tensors.items() if "hada" in key]
    wanted = (parts[0] @ parts[1]) * (parts[2] @ parts[3]) / rank

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    assert isinstance(adapter.module(Q).terms[0].delta, kind)
    torch.testing.assert_close(adapter.delta_weights()[f"{Q}.weight"], wanted)

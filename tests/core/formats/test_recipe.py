"""Files with an equal header are read by one gather, and come out as if read step by step."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.errors import AdapterTensorError, UnmatchedKeysError
from lokr_core.formats import AdapterReader, ReadOptions, ScaleOverrides, read_adapter
from lokr_core.formats import read as reading
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.core.formats.hand_made import (
    FLAT_Q,
    FLAT_V,
    PEFT_Q,
    PEFT_V,
    base_spec,
    draw,
    full,
    lora,
    low_rank,
    write,
    write_peft,
)
from tests.tiny import lycoris_file, tiny_llama


class CountingReader(AdapterReader):
    """A reader that counts the files that it reads step by step."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.num_steps = 0

    def _read_step_by_step(self, *args: Any) -> Any:
        self.num_steps += 1
        return super()._read_step_by_step(*args)


def redrawn(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return tensors of the same shapes and dtypes with other factors and the same alphas."""
    return {
        key: t if key.endswith("alpha") else draw(*t.shape, seed=seed + i).to(t.dtype)
        for i, (key, t) in enumerate(tensors.items())
    }


def assert_same(ours: Adapter, plain: Adapter) -> None:
    """Check that two adapters are the same in everything."""
    assert ours.ref == plain.ref
    assert ours.info == plain.info
    assert ours.layout == plain.layout
    assert torch.equal(ours.buffer, plain.buffer)
    assert torch.equal(ours.scales, plain.scales)


def in_order(tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors file of tensors in the order given, whatever their dtypes."""
    header, data = {}, b""
    for key, tensor in tensors.items():
        begin, data = len(data), data + tensor.numpy().tobytes()
        dtype = {torch.float16: "F16", torch.uint8: "U8"}[tensor.dtype]
        offsets = [begin, len(data)]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


PLAIN: dict[str, dict[str, Tensor]] = {
    "low rank": low_rank(FLAT_Q),
    "odd sizes, which leave gaps": low_rank(FLAT_Q) | low_rank(FLAT_V, rank=1),
    "full beside low rank": full(FLAT_Q) | low_rank(FLAT_V),
    "half precision": {k: t.half() for k, t in low_rank(FLAT_Q).items()},
    "alpha of another dtype": {
        **{k: t.bfloat16() for k, t in low_rank(FLAT_Q).items()},
        f"{FLAT_Q}.alpha": torch.tensor(6),
    },
    "lora": {
        f"{FLAT_Q}.lora_up.weight": draw(8, 3),
        f"{FLAT_Q}.lora_down.weight": draw(3, 12),
        f"{FLAT_Q}.alpha": torch.tensor(6.0),
    },
    "loha too large for Khatri-Rao": {
        f"{FLAT_Q}.{leaf}": draw(*shape)
        for leaf, shape in (
            ("hada_w1_a", (8, 3)),
            ("hada_w1_b", (3, 12)),
            ("hada_w2_a", (8, 3)),
            ("hada_w2_b", (3, 12)),
        )
    },
}


@pytest.mark.parametrize("tensors", PLAIN.values(), ids=PLAIN)
def test_second_file_of_a_kind_is_gathered_and_equal(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """The short way must never come to differ from the long one."""
    spec = base_spec()
    reader = CountingReader(spec)
    for seed in range(3):
        path = write(tmp_path, redrawn(tensors, 10 * seed))

        assert_same(reader.read(path), read_adapter(path, spec))
    assert reader.num_steps == 1


NOT_PLAIN: dict[str, dict[str, Tensor]] = {
    "a gain": low_rank(FLAT_Q) | {f"{FLAT_Q}.dora_scale": draw(8, 1)},
    "Khatri-Rao factors": {
        f"{FLAT_Q}.{leaf}": draw(*shape)
        for leaf, shape in (
            ("hada_w1_a", (8, 1)),
            ("hada_w1_b", (1, 12)),
            ("hada_w2_a", (8, 1)),
            ("hada_w2_b", (1, 12)),
        )
    },
    "two dtypes": low_rank(FLAT_Q) | {f"{FLAT_Q}.lokr_w1": draw(2, 3).half()},
}


@pytest.mark.parametrize("tensors", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_file_whose_factors_are_not_only_moved_is_read_step_by_step(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """What is computed from values cannot be taken from another file."""
    spec = base_spec()
    reader = CountingReader(spec)
    for seed in range(2):
        path = write(tmp_path, redrawn(tensors, 10 * seed))

        assert_same(reader.read(path), read_adapter(path, spec))
    assert reader.num_steps == 2


def test_unaligned_file_is_read_step_by_step(tmp_path: Path) -> None:
    """Its tensors are copies of the bytes that were read, and not views of them."""
    spec = base_spec()
    reader = CountingReader(spec)
    content = write(tmp_path, low_rank(FLAT_Q)).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8:end])).encode()
    text += b" " * (1 + -len(text) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    for _ in range(2):
        assert_same(reader.read(path), read_adapter(path, spec))
    assert reader.num_steps == 2


def test_file_with_one_unaligned_factor_is_read_step_by_step(tmp_path: Path) -> None:
    """An alpha of one byte shifts what follows; that w1 must not be taken for a LoRA's 1."""
    spec = base_spec()
    reader = CountingReader(spec)
    path = tmp_path / "odd.safetensors"
    for seed in range(2):
        named = {
            f"{FLAT_Q}.lokr_w2": draw(4, 4, seed=9).half(),
            f"{FLAT_Q}.alpha": torch.tensor(4, dtype=torch.uint8),
            f"{FLAT_Q}.lokr_w1": draw(2, 3, seed=seed).half(),
        }
        path.write_bytes(in_order(named))

        assert_same(reader.read(path), read_adapter(path, spec))
    assert reader.num_steps == 2


def test_other_alpha_gives_another_scale(tmp_path: Path) -> None:
    """Alpha is a value, not part of the header, and the scale follows it."""
    reader = AdapterReader(base_spec())

    first = reader.read(write(tmp_path, low_rank(FLAT_Q, alpha=6.0))).scales.tolist()
    second = reader.read(write(tmp_path, low_rank(FLAT_Q, alpha=3.0))).scales.tolist()

    assert (first, second) == ([2.0], [1.0])


def test_other_config_or_options_give_another_scale(tmp_path: Path) -> None:
    """They are part of what a recipe is for."""
    reader = AdapterReader(base_spec())
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None))
    override = ReadOptions(overrides=ScaleOverrides(scale=7))

    first = reader.read(folder).scales.tolist()
    second = reader.read(folder, options=override).scales.tolist()
    third = reader.read(write_peft(tmp_path, full(PEFT_Q, alpha=None), alpha=3)).scales.tolist()

    assert (first, second, third) == ([2.0], [7.0], [1.0])


def test_partial_and_strict_do_not_share_a_recipe(tmp_path: Path) -> None:
    """What was once admitted for one caller must still be refused to another."""
    reader = AdapterReader(base_spec())
    path = write(tmp_path, low_rank(FLAT_Q) | {"other.lokr_w1": torch.ones(2, 2)})

    for _ in range(2):
        assert len(reader.read(path, options=ReadOptions(partial=True)).warnings) == 1
        with pytest.raises(UnmatchedKeysError):
            reader.read(path)


@pytest.mark.parametrize("leaf", ["lokr_w1", "lokr_w2_a", "lokr_w2_b"])
def test_tensor_that_is_not_finite_is_refused_by_name_in_any_file(
    tmp_path: Path, leaf: str
) -> None:
    """The gather only sees that something is wrong; the error must say what."""
    reader = AdapterReader(base_spec())
    reader.read(write(tmp_path, low_rank(FLAT_Q)))
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.{leaf}"][-1, -1] = torch.inf

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.{leaf}' holds NaN or infinite"):
        reader.read(write(tmp_path, tensors))


def test_gathered_buffer_costs_what_it_says(tmp_path: Path) -> None:
    """Neither the file's bytes nor another adapter's buffer may be kept alive by it."""
    reader = AdapterReader(base_spec())
    path = write(tmp_path, low_rank(FLAT_Q))
    adapters = [reader.read(path) for _ in range(3)]

    assert len({adapter.buffer.data_ptr() for adapter in adapters}) == 3
    for adapter in adapters:
        assert adapter.buffer.untyped_storage().nbytes() == adapter.num_bytes


def test_recipes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of ever new kinds must not fill the memory; the oldest kind goes first."""
    monkeypatch.setattr(reading, "MAX_RECIPES", 2)
    reader = CountingReader(base_spec())
    folders = []
    for rank in (1, 2, 3):
        (tmp_path / str(rank)).mkdir()
        folders.append(write(tmp_path / str(rank), low_rank(FLAT_Q, rank=rank)))

    for index in (0, 1, 0, 2, 0, 1):
        reader.read(folders[index])

    assert reader.num_steps == 4


def test_one_reader_serves_many_threads(tmp_path: Path) -> None:
    """Loads run beside each other, and each must get its own adapter."""
    spec = base_spec()
    reader = AdapterReader(spec)
    paths = []
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        tensors = redrawn(lora(PEFT_Q) | lora(PEFT_V), seed)
        paths.append(write_peft(tmp_path / str(seed), tensors, peft_type="LORA", lora_alpha=6))
    wanted = [read_adapter(path, spec) for path in paths]
    found: list[list[Adapter]] = [[] for _ in paths]

    def load(index: int) -> None:
        for _ in range(20):
            found[index].append(reader.read(paths[index]))

    threads = [threading.Thread(target=load, args=(index,)) for index in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for adapters, plain in zip(found, wanted, strict=True):
        assert len(adapters) == 20
        for adapter in adapters:
            assert_same(adapter, plain)


def test_files_of_a_trainer_share_a_recipe(tmp_path: Path) -> None:
    """What real files have in common is enough: forms mix within one of them."""
    spec = discover(tiny_llama())
    reader = CountingReader(spec)
    for seed in range(3):
        path = tmp_path / f"{seed}.safetensors"
        lycoris_file(tiny_llama, path, seed=seed)

        assert_same(reader.read(path), read_adapter(path, spec))
    assert reader.num_steps == 1

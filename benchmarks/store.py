"""An adapter folder with many adapters of one shape, written quickly."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM

from benchmarks.peers import PeftPeer

CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
FULL_RANK = 4096  # so large that PEFT keeps w2 whole
_HEADER_LENGTH_BYTES = 8  # of a safetensors file
_FACTOR_STD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of adapters in PEFT's layout, each with its own random factors."""

    root: Path
    ids: tuple[str, ...]
    factor_bytes: int  # of one adapter, by count

    def files(self, adapter_id: str) -> list[Path]:
        """Return the files of an adapter."""
        return [self.root / adapter_id / name for name in (CONFIG_NAME, TENSORS_NAME)]


def write_store(root: Path, model: LlamaForCausalLM, count: int) -> Store:
    """Write a folder of adapters for a model."""
    root.mkdir(exist_ok=True)
    template = PeftPeer(model, [FULL_RANK]).save(root / "template")[0]
    config = (template / CONFIG_NAME).read_bytes()
    content = (template / TENSORS_NAME).read_bytes()
    shutil.rmtree(root / "template")
    header_end = _HEADER_LENGTH_BYTES + int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    header = json.loads(content[_HEADER_LENGTH_BYTES:header_end])
    dtypes = {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    if dtypes != {"F32"}:
        raise ValueError(f"the factors are {dtypes}, not float32")
    factor_bytes = len(content) - header_end
    ids = tuple(f"adapter-{index:05}" for index in range(count))
    for adapter_id, factors in zip(ids, _factors(factor_bytes, count), strict=True):
        folder = root / adapter_id
        folder.mkdir()
        (folder / CONFIG_NAME).write_bytes(config)
        (folder / TENSORS_NAME).write_bytes(content[:header_end] + factors)
    return Store(root=root, ids=ids, factor_bytes=factor_bytes)


def _factors(num_bytes: int, count: int) -> Iterator[bytes]:
    """Yield the bytes of random float32 factors, each time others: windows of one long draw."""
    draw = np.random.default_rng(3)
    itemsize = np.dtype(np.float32).itemsize
    pool = (_FACTOR_STD * draw.standard_normal(num_bytes + count, np.float32)).tobytes()
    starts = len(pool) // itemsize - num_bytes // itemsize
    for index in draw.permutation(starts)[:count]:
        yield pool[index * itemsize : index * itemsize + num_bytes]

"""Writing safetensors files, the same bytes for the same tensors, and never half of one."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from lokr_core.errors import AdapterFileError
from lokr_core.formats.header import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT_BYTES = 8  # what the safetensors library pads its header to


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file; the widest dtypes come first, so that each tensor is aligned.

    Args:
        tensors: By key.
        metadata: What the header says beside the tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    blocks, end = [], 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        blocks.append(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a path to write to, which takes its final name only if the block ends well.

    Args:
        out: The final name, of a file or a folder.

    Raises:
        AdapterFileError: It is taken, or cannot be written to.
    """
    # The suffix stays, since it tells readers what a file is.
    stage = out.with_name(f".{out.stem}.{uuid4().hex[:8]}{out.suffix}")
    try:
        if out.exists():
            raise AdapterFileError(f"{out}: exists already; remove it or name another")
        try:
            yield stage
            stage.rename(out)
        finally:
            _remove(stage)
    except OSError as error:
        raise AdapterFileError(f"{out}: cannot be written: {error.strerror}") from error


def _remove(stage: Path) -> None:
    if stage.is_dir():
        shutil.rmtree(stage)
    else:
        stage.unlink(missing_ok=True)

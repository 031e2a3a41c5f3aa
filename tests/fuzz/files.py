"""AdapterFiles: the bytes of an adapter's files, taken apart and put together again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/]))')


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """An adapter as it lies on the disk; a PEFT folder has a configuration."""

    name: str
    tensors: bytes
    config: bytes | None

    @classmethod
    def read(cls, name: str, path: Path) -> "AdapterFiles":
        """Read a file, or a folder of PEFT."""
        if path.is_file():
            return cls(name=name, tensors=path.read_bytes(), config=None)
        config = (path / CONFIG).read_bytes()
        return cls(name=name, tensors=(path / TENSORS).read_bytes(), config=config)

    def write(self, folder: Path) -> Path:
        """Write the files into a folder, in place of what is there, and return what to read."""
        (folder / TENSORS).write_bytes(self.tensors)
        if self.config is None:
            (folder / CONFIG).unlink(missing_ok=True)
        else:
            (folder / CONFIG).write_bytes(self.config)
        return folder

    @property
    def text(self) -> str:
        """All that the files say in words."""
        end = 8 + int.from_bytes(self.tensors[:8], "little")
        text = (self.tensors[8:end] + (self.config or b"")).decode("utf-8", errors="replace")
        return text + _ESCAPE.sub(_unescaped, text)


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else escape[2]


@dataclass(slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, apart from its place."""

    dtype: str
    shape: list[object]
    data: bytes


def unpack(content: bytes) -> tuple[dict[str, StoredTensor], Mapping[str, object]]:
    """Return the tensors of a whole file, and its metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        data = content[end + begin : end + stop]
        tensors[name] = StoredTensor(dtype=entry["dtype"], shape=entry["shape"], data=data)
    return tensors, metadata


def header_of(content: bytes) -> tuple[dict[str, object], bytes]:
    """Return the header of a whole file, and the data behind it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: bytes, data: bytes) -> bytes:
    """Return a file of a header and data, however little they fit together."""
    return len(header).to_bytes(8, "little") + header + data


def pack(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, object]) -> bytes:
    """Return a file whose tensors lie end to end, as the reader demands."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end = offsets[1]
    data = b"".join(tensor.data for tensor in tensors.values())
    return with_header(json.dumps(header).encode("utf-8", errors="surrogatepass"), data)

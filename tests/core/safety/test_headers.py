"""Headers that lie: each is refused before memory is taken for what it claims."""

import json
import os
import pickle
import resource
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from lokr_core.errors import AdapterError, AdapterFileError, AdapterTensorError
from lokr_core.formats import AdapterReader, read_adapter, strict_json
from lokr_core.formats import header as headers
from lokr_core.formats import read as reading
from tests.core.formats.hand_made import FLAT_Q, base_spec, low_rank, write

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors_file(folder: Path, header: object, data: bytes = bytes(4)) -> Path:
    """Write a file of a header, given as a value or as its bytes, and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "hostile.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


LYING = {
    "a shape of too many dimensions": {"a": {**F32, "shape": [1] * 9}},
    "a size of thousands of digits": b'{"a": {"dtype": "F32", "shape": [%s]}}' % (b"9" * 4000),
    "sizes whose product overflows": {"a": {**F32, "shape": [2**40, 2**40, 0]}},
    "an offset larger than any file": {"a": {**F32, "data_offsets": [2**59, 2**59 + 4]}},
    "a gap between tensors": {"a": F32, "b": {**F32, "data_offsets": [8, 12]}},
    "two tensors in one place": {"a": F32, "b": F32},
    "a tensor inside another": {"a": F32, "b": {**F32, "dtype": "U8", "data_offsets": [0, 1]}},
    "a name longer than any module's": {"x" * 300: F32},
    "a name that rings the bell": {"a\x07b": F32},
    "a name that is half a character": b'{"\\ud800": {"dtype": "F32"}}',
    "a name that is turned around": {"a\u202eb": F32},
    "an object given twice": b'{"a": {"shape": [1], "shape": [1]}}',
    "a header with text before it": b' {"a": 1}',
}


@pytest.mark.parametrize("header", LYING.values(), ids=LYING)
def test_lying_header_is_refused_by_name(tmp_path: Path, header: object) -> None:
    """What a header claims is held against the file's size, and against what tensors can be."""
    path = safetensors_file(tmp_path, header)

    with pytest.raises(AdapterError) as raised:
        read_adapter(path, base_spec())

    message = str(raised.value).replace(str(path.parent), "")
    assert message.isprintable()
    assert len(message) < 300


def test_huge_empty_tensor_is_refused_by_name(tmp_path: Path) -> None:
    """It takes no bytes of the file, whatever its sizes are."""
    path = safetensors_file(
        tmp_path, {"a": F32, "b": {**F32, "shape": [0, 2**51], "data_offsets": [4, 4]}}
    )

    with pytest.raises(AdapterTensorError, match=r"tensor 'b' is empty: \(0, 2251799813685248\)"):
        read_adapter(path, base_spec())


def test_number_of_tensors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor takes a hundred times its share of the header."""
    monkeypatch.setattr(headers, "MAX_TENSORS", 3)

    with pytest.raises(AdapterFileError, match="it has 4 tensors, more than 3"):
        read_adapter(write(tmp_path, low_rank(FLAT_Q)), base_spec())


OTHERS = {
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "a pickle": pickle.dumps({"a": list(range(100))}),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "GGUF": b"GGUF" + bytes(100),
}


@pytest.mark.parametrize("sign", OTHERS)
def test_file_of_another_kind_is_said_to_be_one(tmp_path: Path, sign: str) -> None:
    """A renamed pickle must not look like a broken download, nor a page like a broken file."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(OTHERS[sign])

    with pytest.raises(AdapterFileError, match=rf"a\.safetensors: .* begins like .*{sign}"):
        read_adapter(path, base_spec())


def test_pickle_in_a_zip_is_not_opened(tmp_path: Path) -> None:
    """torch.save writes a zip archive, whatever name it is given."""
    path = tmp_path / "a.safetensors"
    torch.save({"a": torch.zeros(1)}, path)

    assert zipfile.is_zipfile(path)
    with pytest.raises(AdapterFileError, match=r"as torch\.save writes it"):
        read_adapter(path, base_spec())


def test_header_as_long_as_a_pickle_begins_is_read(tmp_path: Path) -> None:
    """A header of 0x280 bytes begins with the bytes of a pickle; it is a good file all the same."""
    tensors = low_rank(FLAT_Q)
    size = int.from_bytes(write(tmp_path, tensors).read_bytes()[:8], "little")
    notes = {"note": "x" * (0x280 - size - len('"__metadata__":{"note":""},'))}
    path = write(tmp_path, tensors, notes)

    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_adapter(path, base_spec()).info.format == "lycoris"


def test_memory_is_not_taken_before_the_header_is_sound(tmp_path: Path) -> None:
    """A file of holes claims terabytes and has no bytes on the disk."""
    path = safetensors_file(tmp_path, {"a": F32})
    os.truncate(path, 1 << 42)

    with pytest.raises(AdapterFileError, match="its tensors need 4 bytes but 43980"):
        read_adapter(path, base_spec())


def test_file_larger_than_memory_is_refused_by_name(tmp_path: Path) -> None:
    """A header that is sound may still describe more than there is room for."""
    size = 1 << 43
    path = safetensors_file(
        tmp_path, {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    os.truncate(path, path.stat().st_size - 4 + size)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, limits[1]))
    try:
        with pytest.raises(AdapterFileError, match=r"hostile.safetensors: no memory for its \d+"):
            read_adapter(path, base_spec())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


AMPLIFIERS = {
    "lists": b"[" + b"[]," * 300_000 + b"[]]",
    "objects": b"[" + b'{"a":1},' * 100_000 + b"1]",
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b"}",
    "key that comes back last": b"{" + b'"x":0,' * 150_000 + b'"x":0}',
    "many keys, one of them twice": (
        b"{" + b",".join(b'"%d":0' % (i % 99_999) for i in range(100_000)) + b"}"
    ),
    "depth": b"[" * 900_000,
    "quotes": b'"' * 900_000,
    "escapes": b'"' + b'\\"' * 450_000,
    "wide text": b'["' + "\U0001f600".encode() * 200_000 + b'"]',
}


@pytest.mark.parametrize("value", AMPLIFIERS.values(), ids=AMPLIFIERS)
def test_memory_and_time_for_a_header_are_bounded_by_its_size(tmp_path: Path, value: bytes) -> None:
    """A header is parsed whole, so what each byte of it can cost must be known."""
    path = safetensors_file(tmp_path, b'{"a": ' + value + b"}")
    began_at = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError):
            read_adapter(path, base_spec())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 40 * path.stat().st_size
    assert time.process_time() - began_at < 10


@pytest.mark.parametrize("value", [b"[]", b'"\\",["', b'{"a,b": [1, "}"]}'])
def test_values_are_counted_outside_of_text_only(
    monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    """The metadata of a trainer holds JSON as text, which costs no more than text."""
    monkeypatch.setattr(strict_json, "MAX_VALUES", 9)
    text = b"[" + b", ".join([value, b'"' + b"[{,," * 50 + b'"']) + b"]"

    assert strict_json.parse_json(text) == json.loads(text)


def test_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of two bytes takes sixty in memory."""
    monkeypatch.setattr(strict_json, "MAX_VALUES", 9)

    with pytest.raises(ValueError, match=r"^holds more than 9 values"):
        strict_json.parse_json(b'["[,", [], [], [], [], []]')


@pytest.mark.parametrize("num_bytes", [-1, -48, 1, 16])
def test_header_that_is_known_does_not_vouch_for_the_data(tmp_path: Path, num_bytes: int) -> None:
    """A truncated copy of a file that was read before has the same header."""
    path = write(tmp_path, low_rank(FLAT_Q))
    reader = AdapterReader(base_spec())
    reader.read(path)
    os.truncate(path, path.stat().st_size + num_bytes)

    with pytest.raises(AdapterFileError, match="its tensors need"):
        reader.read(path)


def test_recipe_with_a_large_header_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for the next file must not be larger than the adapters."""
    monkeypatch.setattr(reading, "MAX_RECIPE_HEADER_BYTES", 100)
    reader = AdapterReader(base_spec())
    path = write(tmp_path, low_rank(FLAT_Q))

    first, second = reader.read(path), reader.read(path)

    assert torch.equal(first.buffer, second.buffer)
    assert not reader._recipes


def test_path_that_is_none_is_refused(tmp_path: Path) -> None:
    """A NUL ends a path for the system, but not for us."""
    with pytest.raises(AdapterFileError, match="is no path"):
        read_adapter(tmp_path / "a\0b.safetensors", base_spec(), "a")


def test_path_longer_than_any_is_refused(tmp_path: Path) -> None:
    """The file system's own error must become one of ours."""
    with pytest.raises(AdapterFileError, match="cannot be read: File name too long"):
        read_adapter(tmp_path / ("a" * 300), base_spec(), "a")


def test_device_is_refused_without_reading_it() -> None:
    """/dev/zero never ends."""
    with pytest.raises(AdapterFileError, match="not a regular file"):
        read_adapter("/dev/zero", base_spec(), "a")


def test_config_that_is_too_large_is_refused_by_name(tmp_path: Path) -> None:
    """It is not JSON that anybody wrote, and it would be parsed whole."""
    write(tmp_path, low_rank(FLAT_Q)).rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").touch()
    os.truncate(tmp_path / "adapter_config.json", 1 << 40)

    with pytest.raises(AdapterFileError, match=r"adapter_config\.json: has \d+ bytes, more than"):
        read_adapter(tmp_path, base_spec())


def test_factors_whose_products_overflow_are_refused_by_module(tmp_path: Path) -> None:
    """The two halves of a LoHa are multiplied out when they are read, and one infinity spreads."""
    shapes = {"w1_a": (8, 1), "w1_b": (1, 12), "w2_a": (8, 1), "w2_b": (1, 12)}
    tensors = {f"{FLAT_Q}.hada_{leaf}": torch.full(size, 1e30) for leaf, size in shapes.items()}

    with pytest.raises(AdapterError, match=r"module 'block\.q_proj': .* products overflow"):
        read_adapter(write(tmp_path, tensors), base_spec())

"""Files that are missing, broken or hostile: each is refused by name, and none is run."""

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lokr_core.errors import AdapterError, AdapterFileError, AdapterTensorError
from lokr_core.formats import file as tensor_file
from lokr_core.formats import read_adapter
from tests.core.formats.hand_made import FLAT_Q, PEFT_Q, base_spec, low_rank, write, write_peft

GOOD = save(low_rank(FLAT_Q))
HEADER_END = 8 + int.from_bytes(GOOD[:8], "little")
HEADER = json.loads(GOOD[8:HEADER_END])


def with_header(header: object, data: bytes = GOOD[HEADER_END:]) -> bytes:
    """Return a safetensors file of a header and data, however little they fit together."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_entry(**fields: object) -> bytes:
    """Return the good file with some fields of one tensor's description replaced."""
    name = f"{FLAT_Q}.lokr_w2_a"
    entry = {k: v for k, v in {**HEADER[name], **fields}.items() if v is not ...}
    return with_header({**HEADER, name: entry})


BROKEN = {
    "empty": b"",
    "cut in the length": GOOD[:5],
    "cut in the header": GOOD[:50],
    "cut in the data": GOOD[:-1],
    "longer than its tensors": GOOD + b"\0",
    "a header longer than the file": (2**63).to_bytes(8, "little") + GOOD[8:],
    "a header that is no text": GOOD[:8] + b"\xff" * (HEADER_END - 8) + GOOD[HEADER_END:],
    "a header that is no JSON": GOOD[:8] + b"?" * (HEADER_END - 8) + GOOD[HEADER_END:],
    "a header that is no object": with_header([HEADER]),
    "a header nested too deeply": (10**6).to_bytes(8, "little") + b"[" * 10**6,
    "a key given twice": (16).to_bytes(8, "little") + b'{"a": 1, "a": 2}',
    "metadata that is no object": with_header({**HEADER, "__metadata__": [1]}),
    "metadata that is no text": with_header({**HEADER, "__metadata__": {"dim": 1}}),
    "a tensor that is no object": with_header({**HEADER, f"{FLAT_Q}.lokr_w2_a": 1}),
    "a tensor without a shape": with_entry(shape=...),
    "a negative size": with_entry(shape=[-4, -3]),
    "a size that is no whole number": with_entry(shape=[4.0, 3]),
    "a size that is true": with_entry(shape=[True, 12]),
    "a shape that needs more bytes": with_entry(shape=[4, 4]),
    "a huge shape": with_entry(shape=[2**62, 2**62]),
    "offsets past the end": with_entry(data_offsets=[10**6, 10**6 + 48]),
    "offsets that overlap": with_entry(data_offsets=[0, 48]),
    "three offsets": with_entry(data_offsets=[0, 48, 96]),
    "offsets in the wrong order": with_entry(data_offsets=[48, 0]),
    "a pickle by another name": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """A file that is not whole must not be half read, and the operator must find it."""
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)

    with pytest.raises(AdapterFileError, match=r"broken\.safetensors: not a whole safetensors"):
        read_adapter(path, base_spec())


@given(
    cut=st.integers(0, len(GOOD) - 1), flips=st.lists(st.integers(0, HEADER_END - 1), max_size=3)
)
def test_damage_is_an_adapter_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[int]
) -> None:
    """Whatever happened to a file, the reader ends in its own error and never in another."""
    content = bytearray(GOOD[: cut or None])
    for position in flips:
        if position < len(content):
            content[position] ^= 0x15
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    path.write_bytes(content)

    with contextlib.suppress(AdapterError):
        assert read_adapter(path, base_spec()).buffer.isfinite().all()


def test_header_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header is parsed whole, so its size is bounded before."""
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 100)
    path = write(tmp_path, low_rank(FLAT_Q))

    with pytest.raises(AdapterFileError, match="a header of"):
        read_adapter(path, base_spec())


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    """Safetensors asks for no alignment; an odd header must not end in a crash."""
    text = json.dumps(HEADER).encode()
    text += b" " * (1 + -len(text) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + GOOD[HEADER_END:])

    ours = read_adapter(path, base_spec()).buffer

    assert torch.equal(ours, read_adapter(write(tmp_path, low_rank(FLAT_Q)), base_spec()).buffer)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    """The commonest mistake of all."""
    with pytest.raises(AdapterFileError, match=r"gone\.safetensors: cannot be read: No such file"):
        read_adapter(tmp_path / "gone.safetensors", base_spec())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    """A file of another user must not look like a broken one."""
    path = write(tmp_path, low_rank(FLAT_Q))
    path.chmod(0)

    with pytest.raises(AdapterFileError, match=r"adapter\.safetensors: .*Permission denied"):
        read_adapter(path, base_spec())


def test_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    """Opening a pipe would hold the loading thread for ever."""
    os.mkfifo(tmp_path / "a.safetensors")

    with pytest.raises(AdapterFileError, match="not a regular file"):
        read_adapter(tmp_path / "a.safetensors", base_spec())


@pytest.mark.parametrize(
    ("num_bytes", "problem"), [(-1, "became shorter"), (1, "was written to while it was read")]
)
def test_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, num_bytes: int, problem: str
) -> None:
    """A copy in progress must not be taken for a whole file."""
    path = write(tmp_path, low_rank(FLAT_Q))

    def change(_: bytes, size: int) -> bool:
        os.truncate(path, size + num_bytes)
        return True

    with pytest.raises(AdapterFileError, match=problem):
        tensor_file.read_file(path, change)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickle_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    """A pickle runs code when it is opened, so it is not opened at all."""
    path = tmp_path / f"adapter{suffix}"
    path.write_bytes(b"cos\nsystem\n")

    with pytest.raises(AdapterFileError, match=rf"adapter\{suffix}: .* is a pickle"):
        read_adapter(path, base_spec())


@pytest.mark.parametrize("has_config", [True, False])
def test_folder_with_a_pickle_alone_is_refused_by_name(tmp_path: Path, has_config: bool) -> None:
    """Old PEFT wrote adapter_model.bin; the error names it, and the remedy."""
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    if has_config:
        (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")

    with pytest.raises(AdapterFileError, match=r"adapter_model\.bin: .*save .* as \.safetensors"):
        read_adapter(tmp_path, base_spec())


def test_folder_without_tensors_is_refused_by_name(tmp_path: Path) -> None:
    """An empty folder is a wrong path."""
    with pytest.raises(AdapterFileError, match=r"is a folder without a \.safetensors file"):
        read_adapter(tmp_path, base_spec())


def test_folder_with_several_files_is_refused_by_their_names(tmp_path: Path) -> None:
    """Which of two checkpoints is meant cannot be guessed."""
    for name in ("step1", "step2"):
        (tmp_path / f"{name}.safetensors").write_bytes(GOOD)

    with pytest.raises(AdapterFileError, match=r"'step1\.safetensors', 'step2\.safetensors'"):
        read_adapter(tmp_path, base_spec())


def test_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    """Some trainers give each adapter a folder of its own."""
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(GOOD)

    assert read_adapter(tmp_path, base_spec(), "a").info.format == "lycoris"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("leaf", ["lokr_w1", "lokr_w2_a", "lokr_w2_b"])
def test_tensor_that_is_not_finite_is_refused_by_name(
    tmp_path: Path, leaf: str, value: float
) -> None:
    """One NaN in a factor makes NaN of every output that it touches."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.{leaf}"][0, 0] = value

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.{leaf}' holds NaN or infinite"):
        read_adapter(write(tmp_path, tensors), base_spec())


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str
)
def test_factor_of_a_wrong_dtype_is_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    """Integers are quantised weights whose scale is elsewhere."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.lokr_w1"] = tensors[f"{FLAT_Q}.lokr_w1"].to(dtype)

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.lokr_w1' is {dtype}"):
        read_adapter(write(tmp_path, tensors), base_spec())


def test_dtype_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    """Safetensors grows new dtypes; each must be served on purpose."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_entry(dtype="F4"))

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.lokr_w2_a' has dtype 'F4'"):
        read_adapter(path, base_spec())


def test_empty_tensor_is_refused_by_name(tmp_path: Path) -> None:
    """A factor of rank 0 has no scale."""
    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.lokr_w2_a' is empty: \(4, 0\)"):
        read_adapter(write(tmp_path, low_rank(FLAT_Q, rank=0)), base_spec())


def test_file_without_tensors_is_refused_by_name(tmp_path: Path) -> None:
    """It would be an adapter that does nothing."""
    with pytest.raises(AdapterFileError, match=r"adapter\.safetensors: holds no tensor"):
        read_adapter(write(tmp_path, {}), base_spec())


def test_config_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    """Without it the scale is not known, so it cannot be passed over."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q, alpha=None))
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()

    with pytest.raises(AdapterFileError, match=r"adapter_config\.json: not a regular file"):
        read_adapter(folder, base_spec())

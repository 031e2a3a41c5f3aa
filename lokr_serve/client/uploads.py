"""Uploads: the file, the frames that it goes in, and when to try again."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lokr_core import AdapterFileError
from lokr_core.formats.locate import MAX_CONFIG_BYTES, find_files
from lokr_core.formats.opening import cannot_read, read_small_file
from lokr_serve.client.errors import AbortedError, ClientError, DataLossError, UnavailableError
from lokr_serve.client.requests import duration
from lokr_serve.types import UploadOptions
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadHeader

OFFSET_KEY = "x-lokr-upload-offset"
CHUNK_BYTES = 1 << 20

MAX_FRUITLESS = 4  # attempts in a row that brought the server no byte
FIRST_WAIT_SECONDS = 0.2  # doubles
MAX_WAIT_SECONDS = 2.0

Progress = Callable[[int, int], object]  # bytes that are sent, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFile:
    """An adapter's file, as it was when it was hashed."""

    path: Path
    num_bytes: int
    digest: str
    config: str  # adapter_config.json; "" if there is none

    @classmethod
    def of(cls, path: Path) -> "UploadFile":
        """Find an adapter's files and hash them; blocks.

        Raises:
            AdapterFileError: They are missing, or cannot be read, or the configuration is no text.
        """
        files = find_files(path)
        config = "" if files.config is None else _read_config(files.config)
        digest, num_bytes = hashlib.sha256(), 0
        for chunk in _read(files.tensors, 0):
            digest.update(chunk)
            num_bytes += len(chunk)
        return cls(
            path=files.tensors,
            num_bytes=num_bytes,
            digest=digest.hexdigest(),
            config=config,
        )

    def header(self, adapter_id: str, options: UploadOptions) -> UploadAdapterRequest:
        """Return the first frame."""
        header = UploadHeader(
            adapter_id=adapter_id,
            size_bytes=self.num_bytes,
            digest=self.digest,
            config_json=self.config,
            replace=options.replace,
            pinned=options.pinned,
            ttl=duration(options.ttl_seconds),
            **asdict(options.overrides),
        )
        return UploadAdapterRequest(header=header)

    def chunks(self, offset: int | None, progress: Progress) -> Iterator[UploadAdapterRequest]:
        """Yield the frames from an offset on, none without one; blocks."""
        if offset is None:
            return
        progress(offset, self.num_bytes)
        for chunk in _read(self.path, offset):
            yield UploadAdapterRequest(chunk=chunk)
            offset += len(chunk)
            progress(offset, self.num_bytes)


def offset_of(metadata: Iterable[tuple[str, str | bytes]]) -> int | None:
    """Return what the server holds of a file already; None if it has refused the header."""
    for key, value in metadata:
        if key == OFFSET_KEY:
            return int(value)
    return None


@dataclass(slots=True)
class Attempts:
    """Whether an upload that broke off is tried again."""

    offset: int | None = None  # that the last attempt started from, unless it was refused
    _furthest: int = -1
    _num_fruitless: int = 0

    def wait_seconds(self, error: ClientError, remaining_seconds: float) -> float:
        """Return how long to wait before the next attempt.

        Args:
            error: What the last one ended with.
            remaining_seconds: What is left for all of them; the next must begin before that.

        Raises:
            ClientError: There is none to be: ``error`` itself.
        """
        if self.offset is not None and self.offset > self._furthest:
            self._furthest, self._num_fruitless = self.offset, 0
        self._num_fruitless += 1
        if self._num_fruitless >= MAX_FRUITLESS or not self._may_pass(error):
            raise error
        wait_seconds = self._own_wait() if error.retry_seconds is None else error.retry_seconds
        if wait_seconds >= remaining_seconds:
            raise error
        return wait_seconds

    def _own_wait(self) -> float:
        return min(FIRST_WAIT_SECONDS * 2.0 ** (self._num_fruitless - 1), MAX_WAIT_SECONDS)

    def _may_pass(self, error: ClientError) -> bool:
        match error:
            case UnavailableError():
                return True
            case AbortedError():  # the server may not have noticed yet that the last one broke
                return error.reason == "UPLOAD_BUSY"
            case DataLossError():  # what the server had was spoilt, and it has dropped it
                return bool(self.offset)
            case _:
                return False


def _read_config(path: Path) -> str:
    try:
        return read_small_file(path, MAX_CONFIG_BYTES).decode()
    except UnicodeDecodeError as error:
        raise AdapterFileError(f"{path}: not UTF-8: {error}") from error


def _read(path: Path, offset: int) -> Iterator[bytes]:
    with cannot_read(path), path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk

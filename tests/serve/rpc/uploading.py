"""An adapter's file frame by frame, and what becomes of it on a server."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from lokr_serve.adapters.sources.room import LOCK_NAME
from lokr_serve.client.errors import AbortedError, InvalidArgumentError, client_error
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadHeader
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub

OFFSET_KEY = "x-lokr-upload-offset"
CHUNK_BYTES = 1000
TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An adapter's files as bytes."""

    content: bytes
    config: str

    @classmethod
    def of(cls, folder: Path) -> "Sent":
        """Read the files of an adapter of PEFT."""
        return cls(
            content=(folder / TENSORS).read_bytes(), config=(folder / CONFIG).read_text("utf-8")
        )

    @property
    def digest(self) -> str:
        """Of the tensor file."""
        return hashlib.sha256(self.content).hexdigest()

    def header(self, **fields: object) -> UploadAdapterRequest:
        """Return the first frame; fields stand in for what is right."""
        values: dict[str, object] = {
            "adapter_id": "sent",
            "size_bytes": len(self.content),
            "digest": self.digest,
            "config_json": self.config,
        }
        header = UploadHeader(**{**values, **fields})  # type: ignore[arg-type]
        return UploadAdapterRequest(header=header)

    def chunks(self, begin: int = 0, end: int | None = None) -> list[UploadAdapterRequest]:
        """Return the frames of a part of the file."""
        content = self.content[begin:end]
        return [
            UploadAdapterRequest(chunk=content[offset : offset + CHUNK_BYTES])
            for offset in range(0, len(content), CHUNK_BYTES)
        ]


def send(stub: AdapterServiceStub, *frames: UploadAdapterRequest) -> int:
    """Send frames without waiting for the offset, and return it."""
    call = stub.UploadAdapter.future(iter(frames), timeout=30)
    try:
        call.result()
    except grpc.RpcError as error:
        raise client_error(error) from error
    return int(dict(call.initial_metadata())[OFFSET_KEY])


@contextmanager
def sending(stub: AdapterServiceStub, *frames: UploadAdapterRequest) -> Iterator[Future[None]]:
    """Send frames in a call that stays open in the block, and is then cancelled.

    Yields:
        What ends the call as its client would, once it has a result.

    Raises:
        ClientError: The server has refused the header.
    """
    done: Future[None] = Future()
    call = stub.UploadAdapter.future(_open_ended(frames, done), timeout=30)
    try:
        if OFFSET_KEY not in dict(call.initial_metadata()):
            call.result()
        yield done
    except grpc.RpcError as error:
        raise client_error(error) from error
    finally:
        call.cancel()
        if not done.done():
            done.set_result(None)


def fall_silent(stub: AdapterServiceStub, *frames: UploadAdapterRequest) -> None:
    """Send frames, and then nothing until the server ends the call.

    Raises:
        ClientError: What it ends with.
    """
    done: Future[None] = Future()
    try:
        stub.UploadAdapter.future(_open_ended(frames, done), timeout=30).result()
    except grpc.RpcError as error:
        raise client_error(error) from error
    finally:
        done.set_result(None)


def _open_ended(
    frames: Iterable[UploadAdapterRequest], done: Future[None]
) -> Iterator[UploadAdapterRequest]:
    yield from frames
    done.result()


def break_off(stub: AdapterServiceStub, sent: Sent, folder: Path, num_bytes: int) -> None:
    """Send the beginning of a file, and cancel the call once it is on the disk."""
    part = folder / f"{sent.digest}.part"
    with sending(stub, sent.header(), *sent.chunks(end=num_bytes)):
        until(lambda: part.exists() and part.stat().st_size == num_bytes)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what happens in the server, of which nothing else tells."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kept(folder: Path) -> list[str]:
    """Return what lies in the folder of uploads, but its lock and what is on its way out."""
    names = {path.name for path in folder.iterdir()} - {LOCK_NAME}
    return sorted(name for name in names if not name.startswith("trash-"))


def offsets(told: list[tuple[int, int]]) -> Callable[[int, int], None]:
    """Return a callback that notes what it is told of the progress."""
    return lambda sent_bytes, num_bytes: told.append((sent_bytes, num_bytes))


def is_busy(stub: AdapterServiceStub, sent: Sent) -> bool:
    """Whether the server still receives a file; asks with a header and nothing else."""
    try:
        send(stub, sent.header())
    except AbortedError:
        return True
    except InvalidArgumentError:
        pass
    return False

"""How both clients send files, to a server that breaks off as it is told."""

import hashlib
import itertools
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from lokr_core import AdapterFileError, LokrError
from lokr_serve.client import (
    AbortedError,
    AsyncClient,
    Client,
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    UnavailableError,
    uploads,
)
from lokr_serve.client.sending import Sending, send_async
from lokr_serve.client.uploads import UploadFile
from lokr_serve.errors import (
    AdapterUnloadedError,
    DigestMismatchError,
    ShuttingDownError,
    SourceUnavailableError,
    UploadBusyError,
    UploadError,
)
from lokr_serve.rpc.status import error_status
from lokr_serve.types import UploadOptions
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadAdapterResponse
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub

CONTENT = bytes(range(256)) * 14_000  # three chunks and a half
DIGEST = hashlib.sha256(CONTENT).hexdigest()
BROKEN = ShuttingDownError("as told")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the server does with one call."""

    error: LokrError | None = None  # that the call ends with
    at: int = -1  # when it holds so many bytes; -1 is before the offset is told
    stays: bool = False  # reads nothing until the client gives up
    is_hasty: bool = False  # ends the call before it reads anything


@dataclass(slots=True, kw_only=True, eq=False)
class ToldStore:
    """A server that keeps what it is sent in memory."""

    turns: list[Turn] = field(default_factory=list)  # then all goes well
    held: bytes = b""
    offsets: list[int] = field(default_factory=list)
    num_calls: int = 0
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)

    def upload(
        self, frames: Iterator[UploadAdapterRequest], context: grpc.ServicerContext
    ) -> UploadAdapterResponse:
        """Serve one call."""
        turn = self.turns.pop(0) if self.turns else Turn()
        self.num_calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if turn.is_hasty:
            _end(context, turn)
        header = next(frames).header
        if turn.stays:
            next(frames, None)
        if turn.at < 0:
            _end(context, turn)
        self.offsets.append(len(self.held))
        context.send_initial_metadata((("x-lokr-upload-offset", str(len(self.held))),))
        for frame in frames:
            self.held += frame.chunk
            if 0 <= turn.at <= len(self.held):
                _end(context, turn)
        if isinstance(turn.error, DigestMismatchError):
            self.held = b""
            _end(context, turn)
        return UploadAdapterResponse(adapter={"adapter_id": header.adapter_id, "state": 3})


def _end(context: grpc.ServicerContext, turn: Turn) -> None:
    if turn.error is not None:
        status = error_status(turn.error)
        context.set_trailing_metadata(status.trailers)
        context.abort(status.code, status.message)


@pytest.fixture
def store() -> ToldStore:
    """A server's store."""
    return ToldStore()


@pytest.fixture
def address(store: ToldStore) -> Iterator[str]:
    """Where the server listens."""
    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.stream_unary_rpc_method_handler(
        store.upload,
        UploadAdapterRequest.FromString,
        UploadAdapterResponse.SerializeToString,
    )
    service = "lokr_serve.v1.AdapterService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"UploadAdapter": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to send; the server does not look what it is."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "FIRST_WAIT_SECONDS", 0.001)


Send = Callable[[str, Path], Awaitable[str]]
UploadCall: TypeAlias = "grpc.aio.StreamUnaryCall[UploadAdapterRequest, UploadAdapterResponse]"


async def send_blocking(address: str, path: Path) -> str:
    """Send a file with the blocking client, and return the id that came back."""
    with Client(address, timeout_seconds=20) as client:
        return client.upload_adapter("a", path).adapter_id


async def send_from_loop(address: str, path: Path) -> str:
    """Send a file with the asyncio client, and return the id that came back."""
    async with AsyncClient(address, timeout_seconds=20) as client:
        return (await client.upload_adapter("a", path)).adapter_id


both = pytest.mark.parametrize("send", [send_blocking, send_from_loop])


@both
async def test_what_breaks_off_goes_on_from_there(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """However often it breaks, as long as it gets further."""
    store.turns = [Turn(error=BROKEN, at=at) for at in (1 << 20, 2 << 20, 3 << 20)]
    store.turns = [turn for turn in store.turns for _ in range(2)]

    assert await send(address, file) == "a"
    assert store.held == CONTENT
    assert sorted(store.offsets) == store.offsets
    assert all("x-request-id" in metadata for metadata in store.metadata)


async def test_a_call_that_ends_under_the_first_frame_is_made_again(
    store: ToldStore, address: str, file: Path
) -> None:
    """To grpc it is an error of its own when that frame is under way; a busy loop makes it so."""
    store.turns = [Turn(error=UploadBusyError(DIGEST), is_hasty=True)]
    async with grpc.aio.insecure_channel(address) as channel:

        def begin(**options: object) -> UploadCall:
            call: UploadCall = AdapterServiceStub(channel).UploadAdapter(**options)
            write = call.write

            async def write_late(frame: UploadAdapterRequest) -> None:
                await call.wait_for_connection()
                time.sleep(0.1)  # noqa: ASYNC251  # the end comes meanwhile
                await write(frame)

            call.write = write_late  # type: ignore[assignment, method-assign]
            return call

        sending = Sending(
            file=UploadFile.of(file),
            adapter_id="a",
            options=UploadOptions(),
            progress=lambda done, total: None,
            metadata=tuple,
            until=time.monotonic() + 20,
        )
        reply = await send_async(begin, sending)

    assert reply.adapter.adapter_id == "a"
    assert store.num_calls == 2


@both
async def test_attempts_that_get_nowhere_end(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """A server that is gone for long must not be asked for ever."""
    store.turns = [Turn(error=SourceUnavailableError("s", "is gone", 0.001))] * 9

    with pytest.raises(UnavailableError, match="is gone"):
        await send(address, file)

    assert store.num_calls == uploads.MAX_FRUITLESS


@both
async def test_a_call_that_the_server_still_holds_is_waited_for(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """It may take a moment to notice that the call before has broken."""
    store.turns = [Turn(error=UploadBusyError(DIGEST))] * 2

    assert await send(address, file) == "a"
    assert store.num_calls == 3


@both
async def test_a_spoilt_beginning_is_sent_again_and_a_spoilt_file_is_not(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """What the server had may be damaged; what was sent whole is what it is."""
    mismatch = DigestMismatchError("upload:x", expected=DIGEST, found="ab" * 32)
    store.held = b"bad" * 100
    store.turns = [Turn(error=mismatch, at=len(CONTENT) + 1)]

    assert await send(address, file) == "a"
    assert store.offsets == [300, 0]

    store.held = b""
    store.turns = [Turn(error=mismatch, at=len(CONTENT) + 1)]
    with pytest.raises(DataLossError):
        await send(address, file)


@both
async def test_what_will_not_pass_is_raised(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """A file is not sent four times to be refused four times."""
    store.turns = [Turn(error=UploadError("no"))]
    with pytest.raises(InvalidArgumentError):
        await send(address, file)
    assert store.num_calls == 1

    store.turns = [Turn(error=AdapterUnloadedError("a"))]
    with pytest.raises(AbortedError):
        await send(address, file)
    assert store.num_calls == 2


async def test_a_whole_file_is_not_sent_again(store: ToldStore, address: str, file: Path) -> None:
    """The server says that it has all of it."""
    store.held = CONTENT
    told: list[tuple[int, int]] = []
    with Client(address) as client:
        client.upload_adapter("a", file, progress=lambda *counts: told.append(counts))

    assert told == [(len(CONTENT), len(CONTENT))]
    assert store.held == CONTENT


def test_the_timeout_is_for_all_attempts(store: ToldStore, address: str, file: Path) -> None:
    """A caller who waits ten seconds waits no forty."""
    store.turns = [Turn(error=BROKEN), Turn(stays=True)]
    with Client(address) as client, pytest.raises(DeadlineExceededError):
        client.upload_adapter("a", file, timeout_seconds=0.3)

    assert store.num_calls == 2


@both
async def test_no_attempt_is_waited_for_that_would_begin_too_late(
    store: ToldStore, address: str, file: Path, send: Send
) -> None:
    """The caller learns at once what an attempt after the timeout could not make good."""
    store.turns = [Turn(error=SourceUnavailableError("s", "is gone", 3600))]

    with pytest.raises(UnavailableError, match="is gone"):
        await send(address, file)

    assert store.num_calls == 1


@both
async def test_a_file_that_is_not_there_is_named(address: str, tmp_path: Path, send: Send) -> None:
    """Before anything is asked of the server."""
    with pytest.raises(AdapterFileError, match=r"missing\.safetensors"):
        await send(address, tmp_path / "missing.safetensors")


@both
async def test_a_file_that_goes_on_the_way_is_named(
    store: ToldStore, address: str, file: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is not the server's, and another attempt would not help."""
    chunks = UploadFile.chunks

    def removed(
        sent: UploadFile, offset: int | None, progress: uploads.Progress
    ) -> Iterator[UploadAdapterRequest]:
        file.unlink()
        return chunks(sent, offset, progress)

    monkeypatch.setattr(UploadFile, "chunks", removed)
    with pytest.raises(AdapterFileError, match=r"a\.safetensors: cannot be read"):
        await send(address, file)

    assert (store.num_calls, store.held) == (1, b"")


@both
async def test_a_configuration_that_is_no_text_is_named(
    address: str, tmp_path: Path, send: Send
) -> None:
    """It goes as text, beside the tensors."""
    (tmp_path / "adapter_model.safetensors").write_bytes(CONTENT)
    (tmp_path / "adapter_config.json").write_bytes(b'"\xff"')

    with pytest.raises(AdapterFileError, match=r"adapter_config\.json: not UTF-8"):
        await send(address, tmp_path)


@both
async def test_a_server_that_is_not_there_is_told_apart(file: Path, send: Send) -> None:
    """Whoever reads it must know where to look."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(UnavailableError, match="onnect"):
            await send(f"127.0.0.1:{bound.getsockname()[1]}", file)


async def test_a_deadline_that_passes_before_there_is_a_connection_is_one(file: Path) -> None:
    """The asyncio client hears of it at its first frame."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with AsyncClient(address, timeout_seconds=0.3) as client:
            with pytest.raises(DeadlineExceededError):
                await client.upload_adapter("a", file)


def test_hooks_are_asked_at_every_attempt(store: ToldStore, address: str, file: Path) -> None:
    """Tokens that they bring may have ended meanwhile."""
    tokens = (("x-token", str(number)) for number in itertools.count())
    store.turns = [Turn(error=UploadBusyError(DIGEST))]
    with Client(address, hooks=[lambda metadata: (next(tokens),)]) as client:
        client.upload_adapter("a", file)

    assert [metadata["x-token"] for metadata in store.metadata] == ["0", "1"]
    assert len({metadata["x-request-id"] for metadata in store.metadata}) == 1

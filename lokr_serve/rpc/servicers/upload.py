"""An upload's stream: its header, the offset that answers it, its chunks, and the load."""

import asyncio
from collections.abc import AsyncIterator

from grpc.aio import ServicerContext

from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import LimitSettings
from lokr_serve.errors import DeadlineError, UploadError
from lokr_serve.rpc.conversion.upload_fields import announced_file, upload_spec
from lokr_serve.rpc.interceptors.audit import audited_id
from lokr_serve.rpc.interceptors.authorization import require_adapter
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.servicers.ownership import owned
from lokr_serve.types import AdapterStatus
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadAdapterResponse, UploadHeader

OFFSET_KEY = "x-lokr-upload-offset"  # in the initial metadata: the first byte that is wanted
MAX_SILENCE_SECONDS = 60.0  # between two frames, since an upload keeps room for all of its file

Frames = AsyncIterator[UploadAdapterRequest]


async def receive_upload(
    frames: Frames,
    context: ServicerContext[UploadAdapterRequest, UploadAdapterResponse],
    registry: AdapterRegistry,
    limits: LimitSettings,
) -> AdapterStatus:
    """Receive a file and load it; what came of a file stays for the next call if this one breaks.

    Raises:
        NotServedError: The server takes no uploads.
        NotPermittedError: The caller may not change this adapter.
        InvalidRequestError: The header can never be right.
        UploadError: The frames are not what the header announced, or in the wrong order.
        UploadBusyError, StorageFullError, DigestMismatchError: The file cannot be taken.
        DeadlineError: No frame came for too long.
        LokrError: Whatever a load raises.
    """
    registry.require_uploads()
    header = await _read_header(frames)
    audited_id.set(header.adapter_id)
    require_adapter(header.adapter_id)
    file = await asyncio.to_thread(announced_file, header, caller_variable.get().name)
    spec = owned(upload_spec(header, file), limits)
    async with registry.receive(spec, file) as upload:
        await context.send_initial_metadata(((OFFSET_KEY, str(upload.offset)),))
        while (chunk := await _read_chunk(frames)) is not None:
            await upload.write(chunk)
        await upload.finish()
        return await registry.load(spec)


async def _read_header(frames: Frames) -> UploadHeader:
    frame = await _next(frames)
    if frame is None or frame.WhichOneof("frame") != "header":
        raise UploadError("the first frame must be a header")
    return frame.header


async def _read_chunk(frames: Frames) -> bytes | None:
    """Return the next chunk; None after the last."""
    frame = await _next(frames)
    if frame is None:
        return None
    if frame.WhichOneof("frame") != "chunk":
        raise UploadError("only chunks may follow the header")
    if not frame.chunk:
        raise UploadError("a chunk must not be empty")
    return frame.chunk


async def _next(frames: Frames) -> UploadAdapterRequest | None:
    try:
        async with asyncio.timeout(MAX_SILENCE_SECONDS):
            return await anext(frames, None)
    except TimeoutError:
        raise DeadlineError(
            f"no frame came for {MAX_SILENCE_SECONDS:.0f} s; call again to send the rest"
        ) from None

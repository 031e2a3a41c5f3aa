"""Uploaders: they send files whole, in part, under a wrong digest, and longer than announced."""

import asyncio
from dataclasses import replace
from typing import TypeAlias

import grpc

from lokr_serve.client.errors import client_errors
from lokr_serve.client.uploads import UploadFile, offset_of
from lokr_serve.types import UploadOptions
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadAdapterResponse
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from tests.chaos.access import Known
from tests.chaos.actors.changing import Changed, change
from tests.chaos.cast import SENT
from tests.chaos.place import Content
from tests.chaos.round import Round

Sending: TypeAlias = "grpc.aio.StreamUnaryCall[UploadAdapterRequest, UploadAdapterResponse]"

MEAN_GAP_SECONDS = 0.2
KINDS = ("whole",) * 4 + ("cut",) * 4 + ("wrong digest", "too long")
CHUNK_BYTES = 4096
MEAN_CHUNK_SECONDS = 0.01
CALL_SECONDS = 30.0
REPLACE = UploadOptions(replace=True)


async def upload(round_: Round) -> None:
    """Send one random file after another."""
    address = round_.life.addresses.admin_listen
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = AdapterServiceStub(channel)
        while not round_.over.is_set():
            adapter_id = round_.draws.choice(SENT)
            content = round_.draws.choice(list(round_.scene.place.contents.values()))
            kind = round_.draws.choice(KINDS)
            async with round_.scene.locks[adapter_id]:
                if kind == "whole":
                    await send_whole(round_, adapter_id, content)
                else:
                    await _send_badly(round_, stub, kind, content, adapter_id)
            await round_.pause(MEAN_GAP_SECONDS)


async def send_whole(round_: Round, adapter_id: str, content: Content) -> Changed:
    """Send a file by the client library, which goes on from where an earlier call broke off."""
    offsets: list[int] = []
    path = round_.scene.place.adapters / content.source
    async with change(round_, "upload", adapter_id, content) as changed:
        changed.status = await round_.life.admin.upload_adapter(
            adapter_id, path, REPLACE, progress=lambda sent, _: offsets.append(sent)
        )
    if offsets and changed.status is not None:
        size = offsets[-1]
        began = "nothing" if not offsets[0] else "all" if offsets[0] == size else "a part"
        round_.scene.ledger.count("uploads, by what was there", began)
    return changed


async def _send_badly(
    round_: Round, stub: AdapterServiceStub, kind: str, content: Content, adapter_id: str
) -> None:
    """Send what is not taken; the id stays what it is."""
    path = round_.scene.place.adapters / content.source
    file = await asyncio.to_thread(UploadFile.of, path)
    if kind == "too long":
        file = replace(file, num_bytes=file.num_bytes - 100)
    elif kind == "wrong digest":
        others = [c.digest for c in round_.scene.place.contents.values() if c is not content]
        file = replace(file, digest=round_.draws.choice(others))
    with round_.calling(f"upload, {kind}", adapter_id) as call, client_errors():
        sending = stub.UploadAdapter(timeout=CALL_SECONDS, metadata=Known.OPERATOR.metadata)
        try:
            call.is_left = await _write(round_, sending, file, adapter_id, kind)
            if not call.is_left:
                await sending
        finally:
            sending.cancel()
    if call.is_ok:
        round_.scene.ledger.violate(f"upload, {kind}", f"{adapter_id} was taken")


async def _write(
    round_: Round, sending: Sending, file: UploadFile, adapter_id: str, kind: str
) -> bool:
    """Write frames, and return whether to leave without waiting for the end."""
    try:
        await sending.write(file.header(adapter_id, REPLACE))
        offset = offset_of(await sending.initial_metadata())
        if offset is None:  # the header is refused
            return False
        if offset == file.num_bytes:  # it has all of what the digest stands for
            return True
        content = await asyncio.to_thread(file.path.read_bytes)
        end = len(content)
        if kind == "cut":
            end = round_.draws.randint(offset, max(offset, end - 1))
        for start in range(offset, end, CHUNK_BYTES):
            chunk = content[start : min(end, start + CHUNK_BYTES)]
            await sending.write(UploadAdapterRequest(chunk=chunk))
            await asyncio.sleep(round_.draws.expovariate(1 / MEAN_CHUNK_SECONDS))
        if kind != "cut":
            await sending.done_writing()
    except asyncio.InvalidStateError:  # it has ended, and its status says why
        return False
    except (grpc.aio.AioRpcError, grpc.aio.InternalError):  # it ended under a write of ours
        round_.scene.ledger.count(f"upload, {kind}", "ended while it was sent")
        return True
    return kind == "cut"

"""Strangers: hostile clients that speak gRPC, each over a connection of its own, and a token."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from lokr_serve.client.errors import client_errors
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadHeader
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from lokr_serve.v1.text_pb2 import GenerateOnceRequest, GenerateRequest, SamplingParams, TokenIds
from lokr_serve.v1.text_pb2_grpc import TextServiceStub
from tests.chaos.access import Known, Metadata
from tests.chaos.place import MAX_RECEIVE_BYTES
from tests.chaos.round import LEFT, Round

FLOOD_CALLS = 80  # at the same time, which is more than may wait
RESET_CALLS = 100
SLOW_CALLS = 4
CALL_SECONDS = 30.0
GAP_SECONDS = 0.1
METADATA_BYTES = 48 * 1024
SILENT_UPLOADS, HELD_BYTES = 2, 60_000
GENERATE_ONCE = "/lokr_serve.v1.TextService/GenerateOnce"
UNLOAD = "/lokr_serve.v1.AdapterService/UnloadAdapter"
GUARDED = (
    GENERATE_ONCE,
    "/lokr_serve.v1.TextService/Nothing",
    "/lokr_serve.v1.AdapterService/ListAdapters",
    UNLOAD,
    "/lokr_serve.v1.AdapterService/UploadAdapter",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)

Send: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"

# Replies of half a megabyte, which is more than a connection takes that nobody reads from.
FAT = SamplingParams(max_tokens=400, n=4, logprobs=20, ignore_eos=True)


@asynccontextmanager
async def connection(round_: Round) -> AsyncIterator[grpc.aio.Channel]:
    """Open a connection that is shared with nobody, not even by grpc itself."""
    address, options = round_.life.addresses.listen, [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


async def flood(round_: Round) -> None:
    """Send many more requests than may wait, and the next ones as soon as these have ended."""
    async with connection(round_) as channel:
        stub = TextServiceStub(channel)

        async def shove() -> None:
            with round_.calling("flood"), client_errors():
                await stub.GenerateOnce(
                    GenerateOnceRequest(
                        token_ids=_prompt(round_), sampling=SamplingParams(max_tokens=8)
                    ),
                    timeout=CALL_SECONDS,
                    metadata=Known.CROWD.metadata,
                )

        while not round_.over.is_set():
            async with asyncio.TaskGroup() as group:
                for _ in range(FLOOD_CALLS):
                    group.create_task(shove())
            await round_.pause(GAP_SECONDS)


async def reset_rapidly(round_: Round) -> None:
    """Open many streams on one connection, and leave them at once."""
    async with connection(round_) as channel:
        stub = TextServiceStub(channel)
        while not round_.over.is_set():
            request = GenerateRequest(token_ids=_prompt(round_))
            calls = [
                stub.Generate(request, metadata=Known.CROWD.metadata) for _ in range(RESET_CALLS)
            ]
            await round_.pause(GAP_SECONDS)
            for call in calls:
                call.cancel()
                round_.scene.ledger.count("reset", LEFT)


async def read_slowly(round_: Round) -> None:
    """Ask for much, read one event, and never another."""
    async with connection(round_) as channel:
        stub = TextServiceStub(channel)
        streams = [
            stub.Generate(
                GenerateRequest(token_ids=_prompt(round_), sampling=FAT),
                timeout=CALL_SECONDS,
                metadata=Known.CROWD.metadata,
            )
            for _ in range(SLOW_CALLS)
        ]
        for stream in streams:
            with round_.calling("read slowly") as call, client_errors():
                await stream.read()
                call.is_left = True
        await round_.over.wait()


async def send_too_much(round_: Round) -> None:
    """Send messages beyond the limit, metadata beyond any, and what is no message at all."""
    async with connection(round_) as channel:
        send: Send = channel.unary_unary(GENERATE_ONCE)
        nothing: Send = channel.unary_unary("/lokr_serve.v1.TextService/Nothing")

        async def try_(operation: str, method: Send, request: bytes, metadata: Metadata) -> None:
            with round_.calling(operation), client_errors():
                await method(request, timeout=CALL_SECONDS, metadata=metadata)

        known = Known.CROWD.metadata
        while not round_.over.is_set():
            noise = b"\x0a\xff\xff" + round_.draws.randbytes(40)
            await try_("oversized", send, bytes(MAX_RECEIVE_BYTES + 1), known)
            await try_("malformed", send, noise, known)
            await try_("unknown method", nothing, b"", known)
            await try_("huge metadata", send, b"", (*known, ("x-huge", "x" * METADATA_BYTES)))
            await round_.pause(GAP_SECONDS)


async def knock(round_: Round) -> None:
    """Call without a token, with wrong ones, and with one that is good for less."""
    async with connection(round_) as channel:
        methods: Sequence[Send] = [channel.unary_unary(path) for path in GUARDED]
        unload: Send = channel.unary_unary(UNLOAD)
        while not round_.over.is_set():
            token = round_.draws.choice(["", "Bearer ", "Bearer nobody", "Basic dTpw", "x" * 3000])
            metadata = (("authorization", token),) if token else ()
            with round_.calling("bad token"), client_errors():
                await round_.draws.choice(methods)(b"", timeout=CALL_SECONDS, metadata=metadata)
                round_.scene.ledger.violate("bad token", f"{token[:20]!r} was let in")
            with round_.calling("not permitted"), client_errors():
                await unload(b"", timeout=CALL_SECONDS, metadata=Known.USER.metadata)
                round_.scene.ledger.violate("not permitted", "a user has unloaded an adapter")
            await round_.pause(GAP_SECONDS / 10)


async def hold_uploads(round_: Round) -> None:
    """Announce files, each as large as may be, and send nothing of them."""
    address, options = round_.life.addresses.admin_listen, [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = AdapterServiceStub(channel)
        for number in range(SILENT_UPLOADS):
            digest = round_.draws.randbytes(32).hex()
            header = UploadHeader(adapter_id=f"held/{number}", size_bytes=HELD_BYTES, digest=digest)
            with round_.calling("half-open upload") as call, client_errors():
                sending = stub.UploadAdapter(timeout=CALL_SECONDS, metadata=Known.OPERATOR.metadata)
                await sending.write(UploadAdapterRequest(header=header))
                await sending.initial_metadata()
                call.is_left = True
        await round_.over.wait()


def _prompt(round_: Round) -> TokenIds:
    return TokenIds(ids=round_.draws.choices(range(4, 300), k=8))

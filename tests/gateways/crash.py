"""A crash: one replica is killed while streams run on all of them, and unary calls go on."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from lokr_serve.client import AsyncClient, ClientError
from lokr_serve.types import Chunk, Finished, Started
from tests.gateways.affinity import where
from tests.gateways.load import TIMEOUT_SECONDS, Load, Outcome, Shape, request
from tests.gateways.programs import Gateway, Kind
from tests.gateways.replicas import Fleet

STREAM_TOKENS = 1500  # long enough to be there when the replica dies, and to outlive it
SHAPE = Shape(num_streams=0, num_unary=3, pause_seconds=0.05)
MIN_CALLS = 20  # that end through each gateway after the crash

Events = AsyncGenerator[Started | Chunk | Finished, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What one gateway's clients saw of it."""

    ends: Mapping[str, str]  # by adapter, how its stream ended: "complete", or a code
    hosts: Mapping[str, str]  # by adapter, the replica of its stream
    victim: str  # the host that was killed
    unary: Outcome


async def crash(
    fleet: Fleet, gateways: Sequence[Gateway], adapter_ids: Mapping[Kind, Sequence[str]]
) -> Mapping[Kind, Crash]:
    """Kill the replica of the first stream, and leave it dead.

    Args:
        fleet: The replicas, all of them ready.
        gateways: Where calls are sent.
        adapter_ids: What the streams through each gateway name, one each; none is named twice.
    """
    before = fleet.requests_by_adapter()
    clients = {g.kind: AsyncClient(g.address, timeout_seconds=TIMEOUT_SECONDS) for g in gateways}
    loads = {g.kind: Load(g.address, SHAPE, []) for g in gateways}
    streams: dict[tuple[Kind, str], Events] = {}
    for kind, client in clients.items():
        for adapter_id in adapter_ids[kind]:
            events = client.generate(request(adapter_id, STREAM_TOKENS))
            await anext(events)  # from now on the client may not send it again
            streams[kind, adapter_id] = events
    every_id = [adapter_id for _, adapter_id in streams]
    hosts = await asyncio.to_thread(where, before, fleet, every_id)
    victim = next(r for r in fleet.replicas if r.host == hosts[every_id[0]])
    async with asyncio.TaskGroup() as group:
        unary = {kind: group.create_task(load.run()) for kind, load in loads.items()}
        ends = {key: group.create_task(_end(events)) for key, events in streams.items()}
        await asyncio.to_thread(victim.kill)
        for load in loads.values():
            load.stop(MIN_CALLS)
    for client in clients.values():
        await client.close()
    return {
        gateway.kind: Crash(
            ends={name: end.result() for (kind, name), end in ends.items() if kind is gateway.kind},
            hosts=hosts,
            victim=victim.host,
            unary=unary[gateway.kind].result(),
        )
        for gateway in gateways
    }


async def _end(events: Events) -> str:
    """Read a stream, and say how it ends."""
    num_tokens = 0
    try:
        async for event in events:
            num_tokens += len(event.token_ids) if isinstance(event, Chunk) else 0
    except ClientError as error:
        return error.code.name
    return "complete" if num_tokens == STREAM_TOKENS else f"{num_tokens} tokens"

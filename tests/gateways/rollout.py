"""A rolling restart: replica after replica leaves and comes back, while clients call."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from tests.gateways.load import Load, Outcome, Shape
from tests.gateways.programs import Gateway, Kind
from tests.gateways.replicas import Fleet

# With pauses, so that replicas have time to start on a small machine.
SHAPE = Shape(num_streams=2, num_unary=1, pause_seconds=0.3)
SETTLE_SECONDS = 1.0  # of load before the first restart and after the last


def roll(
    fleet: Fleet,
    gateways: Sequence[Gateway],
    adapter_ids: Sequence[str],
    *,
    num_restarts: int,
    min_seconds: float = 0.0,
) -> Mapping[Kind, Outcome]:
    """Restart replicas in turn under load, and return how calls ended through each gateway.

    Args:
        fleet: The replicas, all of them ready.
        gateways: Where calls are sent, a load to each.
        adapter_ids: What calls name.
        num_restarts: How many replicas are restarted, one after the other.
        min_seconds: For how long the load lasts at least.
    """

    async def run() -> dict[Kind, Outcome]:
        loads = {gateway.kind: Load(gateway.address, SHAPE, adapter_ids) for gateway in gateways}
        async with asyncio.TaskGroup() as group:
            running = {kind: group.create_task(load.run()) for kind, load in loads.items()}
            at_least = asyncio.create_task(asyncio.sleep(min_seconds))
            await asyncio.sleep(SETTLE_SECONDS)
            for replica in itertools.islice(itertools.cycle(fleet.replicas), num_restarts):
                await asyncio.to_thread(fleet.restart, replica)
            await asyncio.sleep(SETTLE_SECONDS)
            await at_least
            for load in loads.values():
                load.stop()
        return {kind: task.result() for kind, task in running.items()}

    return asyncio.run(run())

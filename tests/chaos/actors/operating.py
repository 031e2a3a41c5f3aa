"""Operators: they load, replace, unload, pin and look, with and without patience."""

from lokr_serve.types import LoadSpec
from tests.chaos.actors.changing import change
from tests.chaos.cast import FAR, SENT, SWAPPED
from tests.chaos.round import Round

MEAN_GAP_SECONDS = 0.05
KINDS = ("load",) * 12 + ("unload",) * 3 + ("unload by force",) * 2 + ("update",) * 2 + ("look",)
HASTY_SHARE = 0.15
MAX_HASTE_SECONDS = 0.05
DRAIN_SECONDS = 0.1
MAX_TTL_SECONDS = 2.0


async def operate(round_: Round) -> None:
    """Do one random thing after another to the ids that have no other owner."""
    while not round_.over.is_set():
        kind = round_.draws.choice(KINDS)
        ids = SWAPPED if kind == "load" else (*SWAPPED, *SENT, *FAR)
        adapter_id = round_.draws.choice(ids)
        async with round_.scene.locks[adapter_id]:
            match kind:
                case "load":
                    await _load(round_, adapter_id)
                case "unload" | "unload by force":
                    await _unload(round_, adapter_id, force=kind == "unload by force")
                case "update":
                    await _update(round_, adapter_id)
                case _:
                    await _look(round_, adapter_id)
        await round_.pause(MEAN_GAP_SECONDS)


async def _load(round_: Round, adapter_id: str) -> None:
    content = round_.draws.choice(list(round_.scene.place.contents.values()))
    is_hasty = round_.draws.random() < HASTY_SHARE
    timeout_seconds = round_.draws.uniform(0, MAX_HASTE_SECONDS) if is_hasty else None
    spec = LoadSpec(adapter_id=adapter_id, source=content.source, replace=True)
    async with change(round_, "load", adapter_id, content, is_hasty=is_hasty) as changed:
        changed.status = await round_.life.admin.load_adapter(spec, timeout_seconds=timeout_seconds)


async def _unload(round_: Round, adapter_id: str, *, force: bool) -> None:
    drain_seconds = round_.draws.uniform(0, DRAIN_SECONDS)
    with round_.calling("unload by force" if force else "unload") as call:
        await round_.life.admin.unload_adapter(adapter_id, drain_seconds=drain_seconds, force=force)
    if call.is_ok:
        round_.scene.shelf.is_gone(adapter_id)


async def _update(round_: Round, adapter_id: str) -> None:
    """Pin and soon let go again, or let the id expire."""
    draws, admin = round_.draws, round_.life.admin
    if draws.random() < 0.5:
        ttl_seconds = draws.choice([0.0, draws.uniform(0.2, MAX_TTL_SECONDS)])
        with round_.calling("update"):
            await admin.update_adapter(adapter_id, ttl_seconds=ttl_seconds)
        return
    with round_.calling("update"):
        await admin.update_adapter(adapter_id, pinned=True)
    await round_.pause(MEAN_GAP_SECONDS)
    with round_.calling("update"):
        await admin.update_adapter(adapter_id, pinned=False)


async def _look(round_: Round, adapter_id: str) -> None:
    with round_.calling("get"):
        await round_.life.admin.get_adapter(adapter_id)
    with round_.calling("list"):
        async for _ in round_.life.user.list_adapters():
            pass

"""Fetchers: they load from a remote store, while the way to it changes its mood."""

from lokr_serve.types import LoadSpec
from tests.chaos.actors.changing import Changed, change
from tests.chaos.cast import FAR
from tests.chaos.place import Content
from tests.chaos.proxy import Mood
from tests.chaos.round import Round
from tests.chaos.store import OPEN, PINNED

MEAN_GAP_SECONDS = 0.2
MEAN_MOOD_SECONDS = 0.5
FINE_SHARE = 0.4


async def fetch(round_: Round) -> None:
    """Load one random file of the store after another."""
    while not round_.over.is_set():
        adapter_id = round_.draws.choice(FAR)
        content = round_.draws.choice(list(round_.scene.place.contents.values()))
        is_pinned = round_.draws.random() < 0.5
        async with round_.scene.locks[adapter_id]:
            await load_far(round_, adapter_id, content, is_pinned=is_pinned)
        await round_.pause(MEAN_GAP_SECONDS)


async def load_far(round_: Round, adapter_id: str, content: Content, *, is_pinned: bool) -> Changed:
    """Load a file of the store, by its digest or whatever it is."""
    spec = LoadSpec(
        adapter_id=adapter_id,
        source=(PINNED if is_pinned else OPEN) + content.source,
        digest=content.digest if is_pinned else None,
        replace=True,
    )
    operation = "fetch, by digest" if is_pinned else "fetch"
    async with change(round_, operation, adapter_id, content) as changed:
        changed.status = await round_.life.admin.load_adapter(spec)
    return changed


async def change_mood(round_: Round) -> None:
    """Let the way to the store be good and bad by turns, and good in the end."""
    proxy = round_.scene.proxy
    try:
        while not round_.over.is_set():
            is_fine = round_.draws.random() < FINE_SHARE
            proxy.mood = Mood.FINE if is_fine else round_.draws.choice(list(Mood))
            round_.scene.ledger.count("moods of the store", proxy.mood.value)
            await round_.pause(MEAN_MOOD_SECONDS)
    finally:
        proxy.mood = Mood.FINE


async def crowd_disk(round_: Round) -> None:
    """Take most of the disk, or all of it, and give it back."""
    disk = round_.scene.place.disk
    if not disk.is_small:
        round_.scene.ledger.skip("full disk: no file system can be mounted here")
        return
    try:
        while not round_.over.is_set():
            disk.fill(round_.draws.choice([0, 0, 10_000, 30_000]))
            round_.scene.ledger.count("disk", "filled")
            await round_.pause(MEAN_MOOD_SECONDS)
            disk.clear()
            await round_.pause(MEAN_MOOD_SECONDS)
    finally:
        disk.clear()

"""Recovery: once the store and the disk are well again, everything must work again."""

import time

from lokr_serve.types import SamplingParams
from tests.chaos.actors.asking import ask_once
from tests.chaos.actors.fetching import load_far
from tests.chaos.actors.uploading import send_whole
from tests.chaos.cast import FAR, SENT
from tests.chaos.place import CACHE_TOKENS, PAGE_TOKENS
from tests.chaos.round import Round
from tests.oracle.traffic import PlannedRequest

RECOVERY_SECONDS = 15.0  # sources are tried again after at most a second
AGAIN_SECONDS = 0.2


async def recover(round_: Round) -> None:
    """Fetch, upload, and fill the whole key-value cache, which nobody else may hold any more."""
    await _unpin(round_)
    content = round_.draws.choice(list(round_.scene.place.contents.values()))
    deadline = time.monotonic() + RECOVERY_SECONDS
    is_pinned = round_.draws.random() < 0.5
    while (fetched := await load_far(round_, FAR[0], content, is_pinned=is_pinned)).status is None:
        if time.monotonic() > deadline:
            what = f"the store is well, and nothing is fetched: {fetched.error}"
            round_.scene.ledger.violate("no recovery", what)
            break
        await round_.pause(AGAIN_SECONDS)
    sent = await send_whole(round_, SENT[0], content)
    if sent.status is None:
        what = f"the disk is well, and takes no upload: {sent.error}"
        round_.scene.ledger.violate("no recovery", what)
    if not (await ask_once(round_, _filling(round_), operation="fill the cache")).is_ok:
        round_.scene.ledger.violate("no recovery", "the whole cache cannot be used")


async def _unpin(round_: Round) -> None:
    """Let go of what an operator has pinned who was interrupted."""
    async for adapter in round_.life.admin.list_adapters():
        if adapter.pinned and not adapter.is_declared:
            with round_.calling("update"):
                await round_.life.admin.update_adapter(adapter.adapter_id, pinned=False)


def _filling(round_: Round) -> PlannedRequest:
    """Return a request that takes the whole key-value cache."""
    num_tokens = CACHE_TOKENS - PAGE_TOKENS - 1
    planned = round_.scene.next_request()
    return PlannedRequest(
        number=planned.number,
        parts=(),
        mode=planned.mode,
        prompt_ids=tuple(round_.draws.choices(range(4, 300), k=num_tokens)),
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        seed=planned.seed,
        salt="",
        gap_seconds=0.0,
        cancel_tokens=None,
        cancel_seconds=None,
    )

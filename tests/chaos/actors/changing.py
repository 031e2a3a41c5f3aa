"""Changing: what a call that gives an id a content means for what the id may serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lokr_serve.client import ClientError
from lokr_serve.types import AdapterStatus
from tests.chaos.place import Content
from tests.chaos.round import Round


@dataclass(slots=True, kw_only=True)
class Changed:
    """What came of the call."""

    status: AdapterStatus | None = None  # as the server told it, if it did
    error: ClientError | None = None


@asynccontextmanager
async def change(
    round_: Round, operation: str, adapter_id: str, content: Content, *, is_hasty: bool = False
) -> AsyncIterator[Changed]:
    """Count the call in the block, and note what the id may serve from now on."""
    shelf, changed = round_.scene.shelf, Changed()
    was_possible = content.version in shelf.possible(adapter_id)
    shelf.may_become(adapter_id, content.version)
    with round_.calling(operation, adapter_id, is_hasty=is_hasty) as call:
        yield changed
    changed.error = call.error
    if changed.status is not None:
        shelf.is_now(adapter_id, content.version)
        if changed.status.version != content.version:
            what = f"{adapter_id} has {changed.status.version} in the place of {content.version}"
            round_.scene.ledger.violate(f"wrong {operation}", what)
    elif call.error is not None and call.error.reason and not was_possible:
        shelf.is_not(adapter_id, content.version)

"""Clients that generate: they stream or wait, mix, draw, leave early or have no time."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from lokr_serve.types import GenerationRequest, TokenPrompt
from tests.chaos.cast import ALIASES
from tests.chaos.round import Call, Round
from tests.chaos.truth import Reply
from tests.oracle.traffic import PlannedRequest

MEAN_GAP_SECONDS = 0.02
UNARY_SHARE = 0.3
HASTY_SHARE = 0.1
MAX_HASTE_SECONDS = 0.3


async def ask(round_: Round) -> None:
    """Send one random request after another."""
    while not round_.over.is_set():
        planned = round_.scene.next_request()
        timeout_seconds = _timeout(round_)
        if round_.draws.random() < UNARY_SHARE:
            await ask_once(round_, planned, timeout_seconds=timeout_seconds)
        else:
            await _stream(round_, planned, timeout_seconds)
        await round_.pause(MEAN_GAP_SECONDS)


def _timeout(round_: Round) -> float | None:
    draws = round_.draws
    return draws.uniform(0, MAX_HASTE_SECONDS) if draws.random() < HASTY_SHARE else None


async def ask_once(
    round_: Round,
    planned: PlannedRequest,
    *,
    operation: str = "unary",
    timeout_seconds: float | None = None,
) -> Call:
    """Send a request for one reply, and judge it."""
    with _asking(round_, operation, planned, timeout_seconds) as asked:
        completion = await round_.life.user.generate_once(
            generation_request(planned), timeout_seconds=timeout_seconds
        )
        asked.reply.add(completion.started)
        for chunk, finished in zip(completion.chunks, completion.finished, strict=True):
            asked.reply.add(chunk)
            asked.reply.add(finished)
    return asked.call


async def _stream(round_: Round, planned: PlannedRequest, timeout_seconds: float | None) -> None:
    """Stream a request, leaving when its plan says so."""
    with _asking(round_, "stream", planned, timeout_seconds) as asked:
        stream = round_.life.user.generate(
            generation_request(planned), timeout_seconds=timeout_seconds
        )
        asked.call.is_left = True  # until the end of the stream is read
        with suppress(TimeoutError) if planned.cancel_seconds is not None else nullcontext():
            async with asyncio.timeout(planned.cancel_seconds), aclosing(stream) as events:
                async for event in events:
                    asked.reply.add(event)
                    if asked.reply.num_tokens >= (planned.cancel_tokens or 1000):
                        return
                asked.call.is_left = False


def generation_request(planned: PlannedRequest) -> GenerationRequest:
    """Return what a plan sends."""
    return GenerationRequest(
        prompt=TokenPrompt(ids=planned.prompt_ids),
        adapters=planned.parts,
        sampling=replace(planned.sampling, seed=planned.seed),
        request_id=f"chaos-{planned.number}",
        apply_mode=planned.mode,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    call: Call
    reply: Reply


@contextmanager
def _asking(
    round_: Round, operation: str, planned: PlannedRequest, timeout_seconds: float | None
) -> Iterator[_Asked]:
    """Count a request, and hold its reply against the truth, however far it came."""
    scene, reply = round_.scene, Reply(_without_aliases(planned))
    ids = [part.adapter_id for part in reply.planned.parts]
    with scene.shelf.watching(ids) as sight:
        about, is_hasty = f"chaos-{planned.number}", timeout_seconds is not None
        with round_.calling(operation, about, is_hasty=is_hasty) as call:
            yield _Asked(call=call, reply=reply)
        faults = list(scene.truth.faults(reply, is_ended=call.is_ok))
        if reply.started is not None:
            faults += sight.faults(reply.started)
    for fault in faults:
        where = f"request {planned.number} of life {round_.life.number}"
        scene.ledger.violate(f"wrong {operation}", f"{where}: {fault}")


def _without_aliases(planned: PlannedRequest) -> PlannedRequest:
    """Return a request as the server should take it, by ids alone."""
    parts = (
        replace(part, adapter_id=ALIASES.get(part.adapter_id, part.adapter_id))
        for part in planned.parts
    )
    return replace(planned, parts=tuple(parts))

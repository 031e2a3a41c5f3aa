"""Witness: a client that behaves, and must be served whatever others do."""

from lokr_serve.client import AsyncClient
from lokr_serve.types import GenerationRequest, Priority, SamplingParams, TokenPrompt
from tests.chaos.access import Known
from tests.chaos.round import Round

WITNESS = "witness"  # what the ledger calls its calls
MEAN_GAP_SECONDS = 0.2
TIMEOUT_SECONDS = 30.0
REQUEST = GenerationRequest(
    prompt=TokenPrompt(ids=(5, 6, 7)),
    sampling=SamplingParams(max_tokens=4, temperature=0.0),
    priority=Priority.HIGH,
)


async def witness(round_: Round) -> None:
    """Ask for little, and again after a pause."""
    async with AsyncClient(
        round_.life.addresses.listen,
        credentials=Known.WITNESS.credentials,
        timeout_seconds=TIMEOUT_SECONDS,
    ) as client:
        while not round_.over.is_set():
            with round_.calling(WITNESS):
                await client.generate_once(REQUEST)
            await round_.pause(MEAN_GAP_SECONDS)

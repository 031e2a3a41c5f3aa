"""Completion: the events of one request, put together into one reply."""

from dataclasses import dataclass, field

from lokr_serve.rpc.conversion.text_replies import chunk_message, finished_message, started_message
from lokr_serve.types import Chunk, Finished, Started, TokenLogprob
from lokr_serve.v1.text_pb2 import GenerateOnceResponse


@dataclass(slots=True)
class _Sequence:
    """What has been generated of one sequence."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Completion:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._sequences: dict[int, _Sequence] = {}
        self._finished: dict[int, Finished] = {}

    def add(self, event: Started | Chunk | Finished) -> None:
        """Take the next event."""
        match event:
            case Started():
                self._started = event
            case Chunk():
                sequence = self._sequences.setdefault(event.index, _Sequence())
                sequence.text.append(event.text)
                sequence.token_ids.extend(event.token_ids)
                sequence.logprobs.extend(event.logprobs)
            case Finished():
                self._finished[event.index] = event

    def message(self) -> GenerateOnceResponse:
        """Return the reply; one chunk and one end for each sequence, by index."""
        assert self._started is not None
        indices = sorted(self._finished)
        return GenerateOnceResponse(
            started=started_message(self._started),
            chunks=[chunk_message(self._chunk(index)) for index in indices],
            finished=[finished_message(self._finished[index]) for index in indices],
        )

    def _chunk(self, index: int) -> Chunk:
        sequence = self._sequences.get(index, _Sequence())
        return Chunk(
            index=index,
            text="".join(sequence.text),
            token_ids=tuple(sequence.token_ids),
            logprobs=tuple(sequence.logprobs),
        )

"""Truth: the tokens that a reply must have had, from the trainers' own models in float64."""

from collections.abc import Iterator, Mapping

from lokr_core import Apply
from lokr_serve.types import Chunk, Finished, Started
from tests.chaos.place import Content
from tests.oracle.clients import Answer, Received
from tests.oracle.peers import Peers
from tests.oracle.traffic import PlannedRequest
from tests.oracle.verdict import Judge


class Reply:
    """What a client has got of one request until now."""

    def __init__(self, planned: PlannedRequest) -> None:
        self.planned = planned
        self.started: Started | None = None
        self.sequences = [Received() for _ in range(planned.sampling.n)]
        self.faults: list[str] = []

    @property
    def num_tokens(self) -> int:
        """Tokens of the first sequence."""
        return len(self.sequences[0].token_ids)

    @property
    def is_whole(self) -> bool:
        """Whether every sequence has its end."""
        return all(sequence.finished for sequence in self.sequences)

    def add(self, event: Started | Chunk | Finished) -> None:
        """Take the next event."""
        if isinstance(event, Started):
            if self.started is not None:
                self.faults.append("started twice")
            self.started = event
            return
        if self.started is None:
            self.faults.append("an event came before the start")
        sequence = self.sequences[event.index]
        if sequence.finished is not None:
            self.faults.append("an event came after the end of its sequence")
        if isinstance(event, Finished):
            sequence.finished = event
        else:
            sequence.token_ids += event.token_ids
            sequence.logprobs += event.logprobs


class Truth:
    """Judges replies by the versions that they say they are of."""

    def __init__(self, peers: Peers, contents: Mapping[str, Content]) -> None:
        self._judge = Judge(peers)
        self._contents = contents

    @property
    def num_tokens(self) -> int:
        """How many tokens were compared."""
        return self._judge.verdict.num_tokens

    def faults(self, reply: Reply, *, is_ended: bool) -> Iterator[str]:
        """Say what is wrong with a reply.

        Args:
            reply: As far as it was read.
            is_ended: Whether its call ended with OK.
        """
        yield from reply.faults
        if reply.started is None:
            if is_ended:
                yield "ended without a start"
            return
        yield from self._admission_faults(reply.planned, reply.started)
        answer = self._answer(reply, reply.started, is_ended=is_ended)
        verdict = self._judge.verdict
        self._judge.compare(answer)
        yield from verdict.differences
        verdict.differences.clear()

    def _admission_faults(self, planned: PlannedRequest, started: Started) -> Iterator[str]:
        asked = {part.adapter_id: part.weight for part in planned.parts}
        for adapter in started.adapters:
            if asked[adapter.adapter_id] != adapter.weight:
                yield f"{adapter.adapter_id} was asked for with another weight"
            if adapter.version not in self._contents:
                yield f"{adapter.adapter_id} has version {adapter.version}, which nobody made"
        if len(started.adapters) != len(asked):
            yield f"{len(asked)} adapters were asked for, {len(started.adapters)} served"
        if started.seed != planned.seed:
            yield "another seed was used"

    def _answer(self, reply: Reply, started: Started, *, is_ended: bool) -> Answer:
        return Answer(
            request=reply.planned,
            files={
                adapter.adapter_id: self._contents[adapter.version].file
                for adapter in started.adapters
                if adapter.version in self._contents
            },
            apply=Apply[started.apply_mode.name],
            sequences=reply.sequences,
            end="finished" if is_ended else "cut off",
        )

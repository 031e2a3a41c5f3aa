"""What the chaos run would notice: a check that cannot fail proves nothing."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    Chunk,
    Finished,
    FinishReason,
    ResolvedAdapter,
    SamplingParams,
    Started,
    Timing,
    Usage,
)
from tests.chaos.disk import Disk
from tests.chaos.logs import faults_in_log
from tests.chaos.place import KINDS, Place, build_place
from tests.chaos.shelf import Shelf
from tests.chaos.storage import half_files, leftovers
from tests.chaos.truth import Reply, Truth
from tests.oracle.peers import PeerPart
from tests.oracle.traffic import PlannedRequest

NUM_TOKENS = 6
PLANNED = PlannedRequest(
    number=0,
    parts=(AdapterWeight(adapter_id=KINDS[0], weight=0.5),),
    mode=ApplyMode.UNMERGED,
    prompt_ids=(5, 6, 7),
    sampling=SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
    seed=1,
    salt="",
    gap_seconds=0.0,
    cancel_tokens=None,
    cancel_seconds=None,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Adapters, and empty folders for files."""
    folder = tmp_path_factory.mktemp("place")
    place = build_place(folder, Disk(folder / "disk", is_small=False))
    place.uploads.mkdir(parents=True)
    place.fetched.mkdir()
    return place


def right_reply(place: Place) -> Reply:
    """Return the reply to the request that a right server gives."""
    file = place.peers.files[KINDS[0]][0]
    version = next(v for v, content in place.contents.items() if content.file is file)
    parts, ids = [PeerPart(file=file, asked=PLANNED.parts[0])], list(PLANNED.prompt_ids)
    for _ in range(NUM_TOKENS):
        ids.append(int(place.peers.logits(parts, ids)[-1].argmax()))
    reply = Reply(PLANNED)
    adapter = ResolvedAdapter(adapter_id=KINDS[0], version=version, weight=0.5)
    reply.add(
        Started(
            request_id="x",
            prompt_tokens=3,
            adapters=(adapter,),
            mix_name="",
            apply_mode=ApplyMode.UNMERGED,
            seed=1,
        )
    )
    reply.add(Chunk(index=0, text="", token_ids=tuple(ids[3:])))
    usage = Usage(prompt_tokens=3, cached_prompt_tokens=0, completion_tokens=NUM_TOKENS)
    timing = Timing(queue_seconds=0.0, first_token_seconds=0.0, total_seconds=0.0)
    reason = FinishReason.MAX_TOKENS
    reply.add(Finished(index=0, reason=reason, stop=None, usage=usage, timing=timing))
    return reply


def with_wrong_token(reply: Reply, _: Place) -> None:
    """Change one token."""
    reply.sequences[0].token_ids[2] ^= 1


def with_wrong_version(reply: Reply, place: Place) -> None:
    """Say that the reply is of the other content of the id."""
    other = place.peers.files[KINDS[0]][1]
    version = next(v for v, content in place.contents.items() if content.file is other)
    assert reply.started is not None
    adapter = replace(reply.started.adapters[0], version=version)
    reply.started = replace(reply.started, adapters=(adapter,))


def with_lost_end(reply: Reply, _: Place) -> None:
    """Let the call end without the end of its sequence."""
    reply.sequences[0].finished = None


def with_lost_adapter(reply: Reply, _: Place) -> None:
    """Leave out the adapter."""
    assert reply.started is not None
    reply.started = replace(reply.started, adapters=())


@pytest.mark.parametrize(
    "spoil", [with_wrong_token, with_wrong_version, with_lost_end, with_lost_adapter]
)
def test_a_wrong_reply_is_noticed(place: Place, spoil: Callable[[Reply, Place], None]) -> None:
    """No wrong token, and no stream without its end."""
    truth, reply = Truth(place.peers, place.contents), right_reply(place)
    right = list(truth.faults(reply, is_ended=True))
    spoil(reply, place)

    assert right == []
    assert list(truth.faults(reply, is_ended=True))


def test_a_version_that_was_replaced_before_a_request_is_noticed(place: Place) -> None:
    """Until a load has answered either version is right, after it the new one alone."""
    shelf, reply = Shelf({}), right_reply(place)
    assert reply.started is not None
    old, adapter_id = reply.started.adapters[0].version, KINDS[0]
    shelf.is_now(adapter_id, old)
    with shelf.watching([adapter_id]) as before:
        shelf.may_become(adapter_id, "new")
        with shelf.watching([adapter_id]) as meanwhile:
            shelf.is_now(adapter_id, "new")
            with shelf.watching([adapter_id]) as after:
                pass

    assert [list(sight.faults(reply.started)) for sight in (before, meanwhile)] == [[], []]
    assert len(list(after.faults(reply.started))) == 1


def test_files_that_should_not_be_there_are_noticed(place: Place) -> None:
    """Parts may stay for the next call; whatever else is not whole may not."""
    digest = hashlib.sha256(b"whole").hexdigest()
    (place.uploads / f"{digest}.part").write_bytes(b"wh")
    (place.uploads / digest).mkdir()
    (place.uploads / digest / "adapter_model.safetensors").write_bytes(b"whole")
    right = [*leftovers(place), *half_files(place)]
    (place.uploads / digest / "adapter_model.safetensors").write_bytes(b"who")
    (place.uploads / "trash-1").mkdir()
    (place.fetched / "new-1").mkdir()

    assert right == []
    assert len(list(half_files(place))) == 1
    assert len(list(leftovers(place))) == 2


def test_errors_and_crashes_in_a_log_are_noticed(tmp_path: Path) -> None:
    """What others say on standard error while they are imported is none."""
    log = tmp_path / "log"
    lines = [{"level": level, "message": "x"} for level in ("info", "error")]
    log.write_text("\n".join(["noise", "Fatal Python error: x", *map(json.dumps, lines)]))

    assert len(list(faults_in_log(log))) == 2

"""Gathering: what the engine's thread waits for, and that it waits for nobody who is gone."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lokr_core import AdapterMix, Apply
from lokr_serve.errors import EngineStoppedError
from lokr_serve.image.calls import Call, CallKey, CallSignature, Joining
from lokr_serve.image.gather import Gathering, Member, RequestCancelledError
from lokr_serve.image.turns import Turns

LONG = 60.0  # seconds that no test waits for
SIGNATURE = CallSignature(counted_by="x", rows=frozenset({"x"}))


def a_call(name: str = "unet", num_rows: int = 1) -> Call:
    """Return a call that joins those of the same name."""
    joining = Joining(signature=SIGNATURE, key=CallKey(name=name, parts=()))
    return Call(name=name, function=print, arguments={}, num_rows=num_rows, joining=joining)


def gathering_of(gather_seconds: float = LONG, max_rows: int = 8) -> Gathering:
    """Return an empty gathering."""
    return Gathering(Turns(max_rows=max_rows, gather_seconds=gather_seconds))


def run(gathering: Gathering, member: Member, call: Call) -> object:
    """Make a call of the base model."""
    (output,) = gathering.run(member, [call], AdapterMix(), Apply.UNMERGED)
    return output


class Requests:
    """Requests in threads of their own, each a function of its member."""

    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering
        self._pool = ThreadPoolExecutor(32)

    def start(self, work: Callable[[Member], object], owner: str = "mix") -> "Future[object]":
        """Start a request and return its outcome, once it counts as live."""
        member = Member(owner=owner)
        is_live = threading.Event()

        def live() -> object:
            with self._gathering.taking_part(member):
                is_live.set()
                return work(member)

        future = self._pool.submit(live)
        assert is_live.wait(LONG)
        return future


def test_calls_of_all_live_requests_run_together() -> None:
    """Each waits for the other, and both get their own output."""
    gathering = gathering_of()
    requests = Requests(gathering)
    outcomes = [requests.start(lambda member: run(gathering, member, a_call())) for _ in range(3)]

    batch = gathering.take()
    for index, pending in enumerate(batch):
        gathering.hand_back(pending, index)

    assert sorted(str(outcome.result(LONG)) for outcome in outcomes) == ["0", "1", "2"]


def test_a_request_that_is_busy_is_waited_for_no_longer_than_the_window() -> None:
    """A minute on the host must not cost the others a minute."""
    gathering = gathering_of(gather_seconds=0.001)
    requests = Requests(gathering)
    leave = threading.Event()
    busy = requests.start(lambda _: leave.wait(LONG))
    outcome = requests.start(lambda member: run(gathering, member, a_call()))

    (pending,) = gathering.take()
    gathering.hand_back(pending, "done")
    leave.set()

    assert outcome.result(LONG) == "done"
    assert busy.result(LONG)


@pytest.mark.parametrize("ending", ["returns", "raises", "steps aside", "is dismissed"])
def test_a_request_that_will_not_call_holds_up_nobody(ending: str) -> None:
    """However it ends, between its calls or in one, the engine does not wait for it."""
    gathering = gathering_of()
    requests = Requests(gathering)
    begin, end = threading.Event(), threading.Event()
    members: list[Member] = []

    def work(member: Member) -> None:
        members.append(member)
        assert begin.wait(LONG)
        if ending == "raises":
            raise ValueError
        if ending == "steps aside":
            gathering.step_aside(member)
            assert end.wait(LONG)
        if ending == "is dismissed":
            gathering.dismiss(member, RequestCancelledError())
            run(gathering, member, a_call())

    gone = requests.start(work)
    outcome = requests.start(lambda member: run(gathering, member, a_call()))
    begin.set()
    (pending,) = gathering.take()
    gathering.hand_back(pending, "done")
    end.set()

    assert outcome.result(LONG) == "done"
    expected = {"raises": ValueError, "is dismissed": RequestCancelledError}
    assert type(gone.exception(LONG)) is expected.get(ending, type(None))


def test_a_request_that_is_aside_may_still_call() -> None:
    """A preview is decoded by the engine, while nobody waits for the request."""
    gathering = gathering_of()
    requests = Requests(gathering)

    def work(member: Member) -> object:
        with gathering.aside(member), gathering.aside(member):
            return run(gathering, member, a_call("vae"))

    outcome = requests.start(work)
    (pending,) = gathering.take()
    gathering.hand_back(pending, "pixels")

    assert outcome.result(LONG) == "pixels"


def test_a_call_that_waits_ends_when_its_request_is_dismissed() -> None:
    """Another that is busy still holds the batch back, so nothing has run."""
    gathering = gathering_of()
    requests = Requests(gathering)
    leave = threading.Event()
    busy = requests.start(lambda _: leave.wait(LONG))
    members: list[Member] = []

    def work(member: Member) -> object:
        members.append(member)
        return run(gathering, member, a_call())

    outcome = requests.start(work)
    with gathering._changed:
        assert gathering._changed.wait_for(lambda: gathering._waiting, LONG)
    gathering.dismiss(members[0], RequestCancelledError())

    assert isinstance(outcome.exception(LONG), RequestCancelledError)
    leave.set()
    assert busy.result(LONG)


def test_a_call_that_runs_ends_only_when_it_has_run() -> None:
    """What it uses may be given back after that; its output is dropped."""
    gathering = gathering_of()
    members: list[Member] = []

    def work(member: Member) -> object:
        members.append(member)
        return run(gathering, member, a_call())

    outcome = Requests(gathering).start(work)
    (pending,) = gathering.take()
    gathering.dismiss(members[0], RequestCancelledError())
    is_done_before = outcome.done()
    gathering.hand_back(pending, "done")

    assert not is_done_before
    assert isinstance(outcome.exception(LONG), RequestCancelledError)


def test_aborting_ends_calls_that_wait_that_run_and_that_come() -> None:
    """The engine's thread has ended, so nothing would ever answer them."""
    gathering = gathering_of(max_rows=1)
    requests = Requests(gathering)
    outcomes = [requests.start(lambda member: run(gathering, member, a_call())) for _ in range(2)]

    assert len(gathering.take()) == 1
    gathering.abort()
    outcomes.append(requests.start(lambda member: run(gathering, member, a_call())))

    errors = [outcome.exception(LONG) for outcome in outcomes]
    assert [type(error) for error in errors] == [EngineStoppedError] * 3
    assert gathering.take() == []


def test_a_request_with_two_calls_is_waited_for_when_both_have_ended() -> None:
    """Until then it cannot call again, so the others must not wait for it."""
    gathering = gathering_of()

    def work(member: Member) -> object:
        calls = [a_call("cond"), a_call("uncond")]
        return gathering.run(member, calls, AdapterMix(), Apply.UNMERGED)

    outcome = Requests(gathering).start(work)
    for output in (1, 2):
        (pending,) = gathering.take()
        gathering.hand_back(pending, output)

    assert outcome.result(LONG) == [1, 2]


@given(seed=st.integers(0, 2**32 - 1), num_requests=st.integers(1, 12))
@settings(max_examples=25)
def test_requests_that_come_and_go_at_random_all_end(seed: int, num_requests: int) -> None:
    """No order of calls, failures, cancels and asides leaves anybody waiting."""
    gathering = gathering_of(max_rows=3)
    requests = Requests(gathering)
    engine = threading.Thread(target=serve_badly, args=(gathering, random.Random(seed)))
    engine.start()
    members: list[Member] = []
    draw = random.Random(seed + 1)

    def work(member: Member, own: random.Random) -> None:
        for _ in range(own.randrange(8)):
            action = own.randrange(8)
            if action == 0:
                gathering.dismiss(own.choice(members), RequestCancelledError())
            elif action == 1:
                raise ValueError
            elif action == 2:
                with gathering.aside(member):
                    run(gathering, member, a_call("vae"))
            else:
                run(gathering, member, a_call(own.choice(["a", "b"]), own.choice([1, 2])))

    outcomes: list[Future[object]] = []
    for _ in range(num_requests):
        own = random.Random(draw.random())

        def start(member: Member, own: random.Random = own) -> None:
            members.append(member)
            work(member, own)

        outcomes.append(requests.start(start, owner=draw.choice("xy")))
    errors = {type(outcome.exception(LONG)) for outcome in outcomes}
    gathering.close()
    engine.join(LONG)

    assert not engine.is_alive()
    assert errors <= {type(None), ValueError, RequestCancelledError, KeyError}
    assert not gathering._busy
    assert not gathering._waiting
    assert not gathering._running


def serve_badly(gathering: Gathering, draw: random.Random) -> None:
    """Answer every call until closed, some of them with an error."""
    while batch := gathering.take():
        assert sum(pending.num_rows for pending in batch) <= 3
        assert len({pending.group for pending in batch}) == 1
        for pending in batch:
            if draw.random() < 0.1:
                gathering.fail(pending, KeyError())
            else:
                gathering.hand_back(pending, None)

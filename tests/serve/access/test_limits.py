"""Limits by client and by adapter."""

import random
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lokr_serve.access.limits import Limits
from lokr_serve.config import LimitSettings
from lokr_serve.errors import LimitExceededError
from lokr_serve.metrics import Metrics
from lokr_serve.types import ANONYMOUS, Caller, ClientLimits
from tests.serve.access.clock import Clock


def caller(name: str = "team", **limits: float) -> Caller:
    """Return a client, with limits of its own if they are given."""
    own = ClientLimits(**limits)  # type: ignore[arg-type]
    return Caller(name=name, permissions=frozenset(), limits=own)


class Scene:
    """Limits, and their clock."""

    def __init__(self, max_queue: int = 10, **limits: float) -> None:
        self.clock = Clock()
        self.metrics = Metrics(version="test")
        self.limits = Limits(
            LimitSettings.model_validate(limits),
            max_queue=max_queue,
            metrics=self.metrics,
            clock=self.clock,
        )

    def begin(self, held: ExitStack, who: Caller, *adapters: str) -> Callable[[], None]:
        """Begin a request that lasts as long as ``held``; return what admits it."""
        self.limits.check(who, adapters)
        return held.enter_context(self.limits.counting(who, adapters))

    def ask(self, who: Caller, *adapters: str) -> None:
        """Make a request that ends at once."""
        self.limits.check(who, adapters)
        with self.limits.counting(who, adapters):
            pass

    def fits(self, who: Caller, *adapters: str) -> bool:
        """Whether a request would be let in; it ends at once."""
        try:
            self.ask(who, *adapters)
        except LimitExceededError:
            return False
        return True


def test_nothing_is_limited_unless_it_is_set() -> None:
    """A server that was not told otherwise serves whoever comes, as far as its queue goes."""
    scene = Scene(max_queue=1000)
    with ExitStack() as held:
        for _ in range(1000):
            scene.begin(held, ANONYMOUS, "poet")


def test_a_client_has_so_many_requests_at_a_time() -> None:
    """Running or waiting; others are not touched by what one has."""
    scene = Scene(client_requests=2)
    with ExitStack() as held:
        admit = scene.begin(held, caller())
        scene.begin(held, caller())
        admit()

        with pytest.raises(
            LimitExceededError, match="client 'team' has as many requests as it may, 2"
        ):
            scene.ask(caller())
        assert scene.fits(caller("another"))
    assert scene.fits(caller())


def test_the_file_of_clients_goes_before_the_settings() -> None:
    """One client may be worth more than the others, or less."""
    scene = Scene(client_requests=2)
    with ExitStack() as held:
        for _ in range(3):
            scene.begin(held, caller(max_requests=3))
        assert not scene.fits(caller(max_requests=3))
        scene.begin(held, caller("small", max_requests=1))
        assert not scene.fits(caller("small", max_requests=1))


def test_a_mix_counts_for_each_of_its_adapters() -> None:
    """Whoever mixes two takes part of both; an adapter that is full refuses the whole mix."""
    scene = Scene(adapter_requests=2)
    with ExitStack() as held:
        scene.begin(held, caller(), "poet", "pirate")
        scene.begin(held, caller("another"), "poet")

        with pytest.raises(
            LimitExceededError, match="adapter 'poet' has as many requests as it may, 2"
        ):
            scene.ask(caller(), "pirate", "poet")
        assert scene.fits(caller(), "pirate")
        assert scene.fits(caller())


def test_a_refused_request_counts_for_nothing() -> None:
    """Else the first adapter of a refused mix would stay taken."""
    scene = Scene(adapter_requests=1, client_rate=1.0)
    with ExitStack() as held:
        scene.begin(held, caller("another"), "poet")
        for _ in range(3):
            assert not scene.fits(caller(), "pirate", "poet")
        assert scene.fits(caller(), "pirate")
    labels = {"reason": "limit"}
    shed = scene.metrics.registry.get_sample_value("lokr_serve_requests_shed_total", labels)
    assert shed == 3


def test_a_rate_allows_a_burst_and_then_its_pace() -> None:
    """Four a second: four at once, then one each quarter."""
    scene = Scene(client_rate=4.0)
    burst = [scene.fits(caller()) for _ in range(5)]
    scene.clock.wait(0.25)
    later = [scene.fits(caller()) for _ in range(2)]

    assert burst == [True] * 4 + [False]
    assert later == [True, False]


def test_a_rate_below_one_allows_one_at_once() -> None:
    """A tenth a second is one each ten seconds."""
    scene = Scene(adapter_rate=0.1)
    first, second = scene.fits(caller(), "poet"), scene.fits(caller(), "poet")
    scene.clock.wait(10)

    assert (first, second, scene.fits(caller(), "poet")) == (True, False, True)


@given(rate=st.floats(0.05, 50), waits=st.lists(st.floats(0, 3), max_size=20))
def test_whoever_waits_as_long_as_told_finds_the_next_token(
    rate: float, waits: list[float]
) -> None:
    """The time to come again is honest: never too early, and late by the jitter alone."""
    scene = Scene(client_rate=rate)
    for wait in waits:
        scene.fits(caller())
        scene.clock.wait(wait)
    while scene.fits(caller()):
        pass
    with pytest.raises(LimitExceededError, match="requests a second") as caught:
        scene.ask(caller())

    seconds = caught.value.retry_seconds
    assert seconds is not None
    assert seconds <= 1.25 / rate + 1e-6
    scene.clock.wait(seconds)
    assert scene.fits(caller())


@given(rate=st.floats(0.1, 20), waits=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_no_more_come_through_than_the_rate_allows(rate: float, waits: list[float]) -> None:
    """The law of the bucket: in any time, the burst and what the rate adds."""
    scene = Scene(client_rate=rate)
    began, num_served = scene.clock.now, 0
    for wait in waits:
        num_served += scene.fits(caller())
        most = max(rate, 1.0) + rate * (scene.clock.now - began)
        assert num_served <= most + 1e-3
        scene.clock.wait(wait)


def test_a_client_has_its_share_of_the_queue() -> None:
    """Whoever sends a thousand at once waits behind itself, and leaves places for others."""
    scene = Scene(max_queue=10, client_queue_share=0.3)
    with ExitStack() as held:
        admits = [scene.begin(held, caller()) for _ in range(3)]
        with pytest.raises(LimitExceededError, match="its share of the queue, 3 waiting"):
            scene.ask(caller())
        assert scene.fits(caller("another"))
        admits[0]()
        assert scene.fits(caller())


def test_an_adapter_has_its_share_of_the_queue_too_and_nobodys_is_less_than_a_place() -> None:
    """A share of nothing would refuse every request for ever."""
    scene = Scene(max_queue=10, adapter_queue_share=0.01)
    with ExitStack() as held:
        scene.begin(held, caller(), "poet")
        assert not scene.fits(caller(), "poet")
        assert scene.fits(caller(), "pirate")
        assert not scene.fits(caller(queue_share=0.05))


def test_the_time_to_come_again_follows_from_how_fast_requests_end() -> None:
    """One of a client's two requests, at one end each two seconds, is there in two or so."""
    scene = Scene(client_requests=2)
    for _ in range(40):
        scene.ask(caller("another"))
        scene.clock.wait(2.0)
    with ExitStack() as held:
        scene.begin(held, caller())
        scene.begin(held, caller())
        with pytest.raises(LimitExceededError) as caught:
            scene.ask(caller())

    assert caught.value.retry_seconds is not None
    assert 1.9 <= caught.value.retry_seconds <= 2.6


def test_callers_without_credentials_are_one_client() -> None:
    """A limit that they could leave by saying nothing would be none."""
    scene = Scene(client_requests=1)
    with ExitStack() as held:
        scene.begin(held, ANONYMOUS)
        with pytest.raises(LimitExceededError, match="every client without a name"):
            scene.ask(ANONYMOUS)


def test_names_are_forgotten_once_they_have_nothing() -> None:
    """Clients and adapters come and go by the thousand."""
    scene = Scene(client_rate=2.0, adapter_requests=5)
    for number in range(1000):
        scene.ask(caller(f"client {number}"), f"adapter-{number}")
        scene.clock.wait(0.01)

    assert scene.limits.num_names < 150
    scene.clock.wait(10)
    scene.ask(caller())
    assert scene.limits.num_names <= 2


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_limits_hold_over_any_history_and_nothing_leaks(seed: int) -> None:
    """However requests begin, are admitted and end: never above the limit, none left at the end."""
    chance = random.Random(seed)
    scene = Scene(max_queue=4, client_requests=3, adapter_requests=2, client_queue_share=0.5)
    running: list[tuple[str, tuple[str, ...], ExitStack, Callable[[], None]]] = []
    for _ in range(100):
        scene.clock.wait(chance.random())
        if chance.random() < 0.6 or not running:
            name = chance.choice("xy")
            adapters = tuple(chance.sample("abc", chance.randint(0, 2)))
            held = ExitStack()
            try:
                running.append((name, adapters, held, scene.begin(held, caller(name), *adapters)))
            except LimitExceededError:
                held.close()
        elif chance.random() < 0.5:
            chance.choice(running)[3]()
        else:
            running.pop(chance.randrange(len(running)))[2].close()

        assert all(sum(one[0] == name for one in running) <= 3 for name in "xy")
        assert all(sum(adapter in one[1] for one in running) <= 2 for adapter in "abc")
    for *_, held, _admit in running:
        held.close()

    assert all(scene.fits(caller(name), "a", "b", "c") for name in "xy")
    assert scene.limits.num_names == 0

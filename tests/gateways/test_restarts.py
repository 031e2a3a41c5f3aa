"""Replicas that leave, come back and die while clients call through each gateway."""

import asyncio
from collections.abc import Mapping

import pytest

from tests.gateways.affinity import wait_settled
from tests.gateways.conftest import Gateways
from tests.gateways.crash import MIN_CALLS, Crash, crash
from tests.gateways.load import Outcome
from tests.gateways.programs import Gateway, Kind
from tests.gateways.replicas import Fleet
from tests.gateways.rollout import roll
from tests.gateways.stage import ADAPTER_IDS

pytestmark = pytest.mark.xdist_group("gateways")  # replicas are costly: one worker has them

NUM_RESTARTS = 2
NUM_STREAMS = len(ADAPTER_IDS) // len(Kind)
BROKEN = {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"}  # what gateways make of a broken one


@pytest.fixture(scope="module")
def rolled(fleet: Fleet, gateways: Gateways) -> Mapping[Kind, Outcome]:
    """How calls ended through every gateway while replicas were restarted, once for all."""
    outcomes = roll(fleet, list(gateways.values()), ADAPTER_IDS, num_restarts=NUM_RESTARTS)
    for gateway in gateways.values():
        wait_settled(gateway, fleet)
    return outcomes


@pytest.fixture(scope="module")
def crashed(fleet: Fleet, gateways: Gateways) -> Mapping[Kind, Crash]:
    """How calls ended through every gateway while a replica was killed, once for all."""
    ids = {
        kind: ADAPTER_IDS[number * NUM_STREAMS : (number + 1) * NUM_STREAMS]
        for number, kind in enumerate(Kind)
    }
    crashes = asyncio.run(crash(fleet, list(gateways.values()), ids))
    for replica in fleet.replicas:
        if not replica.is_running:
            replica.start()
            replica.wait_ready()
    for gateway in gateways.values():
        wait_settled(gateway, fleet)
    return crashes


def test_a_rolling_restart_loses_no_call(gateway: Gateway, rolled: Mapping[Kind, Outcome]) -> None:
    """Rollouts happen in the middle of the day; every stream of a replica that leaves is told."""
    outcome = rolled[gateway.kind]

    assert outcome.failures == {}
    assert outcome.num_streams >= 10
    assert outcome.num_unary >= 10


def test_a_crash_breaks_the_streams_of_its_replica_alone(
    gateway: Gateway, crashed: Mapping[Kind, Crash]
) -> None:
    """What was sent cannot be taken back; all else must not notice."""
    crash = crashed[gateway.kind]

    victims = {name for name in crash.ends if crash.hosts[name] == crash.victim}
    assert {crash.ends[name] for name in victims} <= BROKEN
    assert {end for name, end in crash.ends.items() if name not in victims} == {"complete"}


def test_unary_calls_survive_a_crash(gateway: Gateway, crashed: Mapping[Kind, Crash]) -> None:
    """The client library sends them again: nothing of them had come."""
    unary = crashed[gateway.kind].unary

    assert unary.failures == {}
    assert unary.num_unary >= MIN_CALLS

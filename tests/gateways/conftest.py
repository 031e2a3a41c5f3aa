"""Three replicas, and one gateway of each kind before them, for all tests of this folder.

A test that stops or kills a replica brings it back, and waits until every gateway knows it again.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.gateways.affinity import wait_settled
from tests.gateways.programs import Gateway, Kind, program
from tests.gateways.replicas import Fleet
from tests.gateways.stage import Stage, running_stage

Gateways = Mapping[Kind, Gateway]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The replicas."""
    if not any(map(program, Kind)):
        pytest.skip("none of envoy, nginx and haproxy is installed")
    with running_stage(tmp_path_factory.mktemp("gateways")) as stage:
        yield stage


@pytest.fixture(scope="session")
def fleet(stage: Stage) -> Fleet:
    """The replicas, all of them ready."""
    return stage.fleet


@pytest.fixture(scope="session")
def gateways(stage: Stage) -> Iterator[Gateways]:
    """A gateway of each kind that is installed."""
    with ExitStack() as stack:
        running = {
            kind: stack.enter_context(stage.gateway(kind, number, stage.fleet.hosts))
            for number, kind in enumerate(Kind)
            if program(kind) is not None
        }
        for gateway in running.values():
            wait_settled(gateway, stage.fleet)
        yield running


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def gateway(request: pytest.FixtureRequest) -> Gateway:
    """Each gateway in turn."""
    kind: Kind = request.param
    if program(kind) is None:
        pytest.skip(f"{kind.value} is not installed")
    gateways: Gateways = request.getfixturevalue("gateways")
    return gateways[kind]

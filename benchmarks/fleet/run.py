"""Run: every way of routing in turn, before the same replicas, with the same requests."""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Claim, Figure
from benchmarks.fleet.extent import Extent
from benchmarks.fleet.picker import Picker
from benchmarks.fleet.routing import SHIPPED, Routing, configuration
from benchmarks.fleet.traffic import Population, Traffic, send
from benchmarks.harness import Pairs
from benchmarks.models import MODEL_TINY, build_model, vocab_of
from benchmarks.scope import Scope
from benchmarks.store import write_store
from tests.gateways.loopback import Loopback
from tests.gateways.names import name_server
from tests.gateways.programs import Kind, Site, program, running_gateway
from tests.gateways.replicas import Fleet, Place, running_fleet

MAX_ROUNDS = 2  # a round takes minutes: all ways, each with its own time to warm up
GATEWAY_HOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What was seen of one way of routing, once memory held what it would hold."""

    hit_percent: float  # requests whose adapter was in the memory of the replica they reached
    spread: float  # requests of the busiest replica over the mean of all
    p50_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One of the things that are compared."""

    name: str
    unit: str
    of: Callable[[Block], float]


_COLUMNS = (
    _Column(name="requests that hit memory", unit="%", of=lambda block: block.hit_percent),
    _Column(name="load spread", unit="max/mean", of=lambda block: block.spread),
    _Column(name="median latency", unit="ms", of=lambda block: block.p50_seconds),
    _Column(name="p99 latency", unit="ms", of=lambda block: block.p99_seconds),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """Replicas, and what they are asked for."""

    fleet: Fleet
    site: Site
    population: Population
    extent: Extent
    vocab: int

    def measure(self, routing: Routing, seed: int) -> Block:
        """Route requests in one way, first until memory holds what it will hold."""
        change = partial(configuration, routing)
        with running_gateway(Kind.ENVOY, self.site, change) as gateway:
            return asyncio.run(self._measure(gateway.address, routing, seed))

    async def _measure(self, address: str, routing: Routing, seed: int) -> Block:
        async with AsyncExitStack() as stack:
            picker = None
            if routing is Routing.PICKED:
                picker = Picker(self.fleet.replicas, random.Random(seed))
                await stack.enter_async_context(picker.reading())
            await send(address, self._traffic(self.extent.num_warm, seed), picker)
            before = self._counts()
            measured = self._traffic(self.extent.num_measured, seed + 1)
            seconds = await send(address, measured, picker)
            served, loaded = self._counts() - before
        return Block(
            hit_percent=100 * float(1 - loaded.sum() / served.sum()),
            spread=float(served.max() / served.mean()),
            p50_seconds=float(np.quantile(seconds, 0.5)),
            p99_seconds=float(np.quantile(seconds, 0.99)),
        )

    def _traffic(self, count: int, seed: int) -> Traffic:
        return Traffic(
            ids=self.population.draw(count, seed),
            vocab=self.vocab,
            num_callers=self.extent.num_callers,
        )

    def _counts(self) -> NDArray[np.float64]:
        """Return what each replica has served and loaded since its start, [2, replicas]."""
        replicas = self.fleet.replicas
        served = [
            r.count("grpc_server_handled_total", grpc_method="GenerateOnce") for r in replicas
        ]
        loads = "lokr_serve_adapter_load_seconds_count"
        loaded = [replica.count(loads, tier="device") for replica in replicas]
        return np.array([served, loaded])


def run(scope: Scope) -> list[Figure]:
    """Compare the ways of routing with taking turns, by what memory and clients see."""
    if program(Kind.ENVOY) is None:
        raise FileNotFoundError("envoy is not installed; it comes with lokr-serve[cluster]")
    num_rounds = min(scope.num_pairs, MAX_ROUNDS)
    with ExitStack() as stack:
        stage, note = _enter_stage(scope, stack)
        rounds = [
            {routing: stage.measure(routing, seed=2 * number) for routing in _order(number)}
            for number in range(num_rounds)
        ]
    return list(_figures(rounds, note))


def _order(number: int) -> Sequence[Routing]:
    """Return the order of a round; every second one goes backwards."""
    return list(Routing)[:: -1 if number % 2 else 1]


def _enter_stage(scope: Scope, stack: ExitStack) -> tuple[Stage, str]:
    """Start replicas, and say what they have room for."""
    extent = Extent.of(scope)
    model = build_model(MODEL_TINY)
    model.save_pretrained(scope.folder / "model")
    store = write_store(scope.folder / "adapters", model, extent.num_adapters)
    budget = str(extent.room * store.factor_bytes)
    place = Place(model=scope.folder / "model", adapters=store.root, logs=scope.folder)
    loopback = Loopback()
    flags = ("--device-bytes", budget, "--host-bytes", budget, "--merge-cache-bytes", "0")
    fleet = stack.enter_context(
        running_fleet(loopback, place, flags, num_replicas=extent.num_replicas)
    )
    names = stack.enter_context(name_server(loopback.host(GATEWAY_HOST), fleet.hosts))
    population = Population(store.ids)
    stage = Stage(
        fleet=fleet,
        site=Site(
            host=loopback.host(GATEWAY_HOST),
            ports=fleet.ports,
            replicas=fleet.hosts,
            names=names.address,
            folder=scope.folder,
        ),
        population=population,
        extent=extent,
        vocab=vocab_of(model),
    )
    return stage, _note(stage, store.factor_bytes)


def _note(stage: Stage, factor_bytes: int) -> str:
    extent = stage.extent
    of_one, of_all = (
        stage.population.share_of_first(extent.room * count) for count in (1, extent.num_replicas)
    )
    return (
        f"{extent.num_adapters:,} adapters of {factor_bytes:,} bytes, {extent.num_replicas} "
        f"replicas with room for {extent.room:,} each; the most popular {extent.room:,} get "
        f"{of_one:.0%} of the requests, as many as all replicas hold get {of_all:.0%}"
    )


def _figures(rounds: Sequence[Mapping[Routing, Block]], note: str) -> Iterator[Figure]:
    baseline, *others = Routing
    for column in _COLUMNS:
        for routing in others:
            pairs = Pairs(
                baseline=np.array([column.of(blocks[baseline]) for blocks in rounds]),
                candidate=np.array([column.of(blocks[routing]) for blocks in rounds]),
            )
            name = f"{column.name}, {routing.value}{', shipped' if routing is SHIPPED else ''}"
            claim = Claim(name=name, against=baseline.value, unit=column.unit)
            yield claim.of_pairs(pairs, note)
            note = ""

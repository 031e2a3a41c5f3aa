"""load: reading an adapter from warm disk, against reading the bytes of its files."""

from collections.abc import Callable, Iterator
from itertools import cycle

import lokr_core
from benchmarks.figures import Claim, Figure
from benchmarks.harness import interleave, timed
from benchmarks.models import MODEL_4M, MODEL_20M, ModelSize, build_model
from benchmarks.scope import Scope
from benchmarks.store import write_store
from lokr_core import AdapterReader

NUM_ADAPTERS = 100
NUM_READS = 10  # for each side of a pair


def run(scope: Scope) -> list[Figure]:
    """Measure adapters of two sizes, of a known kind and of a new one."""
    return [
        figure
        for name, size in (("small", MODEL_4M), ("large", MODEL_20M))
        for figure in _of_size(scope, name, scope.size(size))
    ]


def _of_size(scope: Scope, name: str, size: ModelSize) -> Iterator[Figure]:
    model = build_model(size)
    store = write_store(scope.folder / name, model, NUM_ADAPTERS)
    spec = lokr_core.attach(model).spec
    reader = AdapterReader(spec)
    ids = cycle(store.ids)
    kilobytes = f"{store.factor_bytes / 1e3:,.0f} kB"
    against = f"reading the {kilobytes} of its files, {NUM_READS} times"

    def read_bytes() -> None:
        for file in store.files(next(ids)):
            file.read_bytes()

    ways: dict[str, Callable[[], object]] = {
        "load": lambda: reader.read(store.root / next(ids)),
        "load as the first of its kind": lambda: AdapterReader(spec).read(store.root / next(ids)),
    }
    for way, read in ways.items():
        pairs = interleave(timed(_repeated(read_bytes)), timed(_repeated(read)), scope.num_pairs)
        seconds = float(sorted(pairs.candidate)[len(pairs.candidate) // 2]) / NUM_READS
        rate = f"{store.factor_bytes / seconds / 1e6:,.0f} MB/s"
        claim = Claim(name=f"{way}, {name} adapters", against=against)
        yield claim.of_pairs(pairs, f"{seconds * 1e3:.2f} ms each, {rate}")


def _repeated(call: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(NUM_READS):
            call()

    return calls

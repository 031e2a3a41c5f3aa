"""``python -m benchmarks``: measure, print tables, and write JSON."""

import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.figures import Figure, print_figures, write_figures
from benchmarks.harness import MIN_PAIRS
from benchmarks.isolated import measure


class Benchmark(Enum):
    """What can be measured, each in a module of its name."""

    COST = "cost"
    IMAGES = "images"
    LAYERS = "layers"
    THROUGHPUT = "throughput"
    SCALE = "scale"
    LOAD = "load"
    STEPS = "steps"
    FLEET = "fleet"


def main(
    names: Annotated[list[Benchmark] | None, typer.Argument(help="All, if none is given.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs for each figure.")] = MIN_PAIRS,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one torch operation.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Where the figures are written.")] = None,
    small: Annotated[bool, typer.Option(help="Tiny sizes, to see that all of it runs.")] = False,
) -> None:
    """Measure what serving costs; each benchmark runs in a process of its own."""
    console = Console(width=max(Console().width, 120))
    results: dict[str, list[Figure]] = {}
    path = json or Path("bench-results", f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as process:
        for benchmark in names or list(Benchmark):
            call = process.submit(measure, benchmark.value, pairs, threads, small)
            results[benchmark.value] = call.result()
            print_figures(benchmark.value, results[benchmark.value], console)
            write_figures(path, command, results)
    console.print(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)

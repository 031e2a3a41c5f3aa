"""What commands print: JSON for machines, lines and tables for people, progress on a terminal."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from lokr_serve.types import AdapterStatus


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value of plain data, dates and enums as JSON."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, default=_plain))


def _plain(value: object) -> object:
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case _:
            raise TypeError(f"{value!r} has no form in JSON")


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one to a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {_text(value)}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; it is cut to the terminal's width, and never in a pipe."""
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(_text, row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def print_adapter(adapter: AdapterStatus, *, as_json: bool) -> None:
    """Print an adapter."""
    if as_json:
        print_json(asdict(adapter))
    else:
        print_facts(asdict(adapter))


def _text(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case Enum():
            return str(value.value)
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case list() | tuple():
            return ", ".join(map(_text, value)) or "-"
        case dict():
            return " ".join(f"{name}={_text(item)}" for name, item in value.items())
        case _:
            return str(value)


def note(text: str) -> None:
    """Say something beside what is printed, to a person only."""
    if sys.stderr.isatty():
        typer.secho(text, err=True, dim=True)


@contextmanager
def step_progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar, on a terminal only, that the callback moves: steps done, steps in all."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step, num_steps: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda step, num_steps: bar.update(task, completed=step, total=num_steps)


@contextmanager
def byte_progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, on a terminal only, that the callback moves: bytes done, bytes in all."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress(text: str) -> Iterator[Callable[[], None]]:
    """Show that something is going on, on a terminal only, until the block or the callback ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    with console.status(Text(text)) as status:
        yield status.stop

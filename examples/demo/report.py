"""The tables at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.demo.scenes import Cast, Play
from examples.demo.stream import PROMPT, Stream

SHOWN_CHARACTERS = 240
TAIL_CHARACTERS = 60


@contextmanager
def shown_live(cast: Cast, console: Console) -> Iterator[None]:
    """Show what the streams say while they say it, where there is a terminal."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: _tails(cast), console=console, transient=True):
        yield


def print_report(play: Play, console: Console) -> None:
    """Print what the streams said, what the adapters cost and what the steps carried."""
    console.print(_texts(play), _speeds(play), _adapters(play), _steps(play))


def _texts(play: Play) -> Table:
    table = Table(
        title=f"The same prompt, {PROMPT!r}, continued: the first text of each", show_lines=True
    )
    table.add_column("mix", style="bold")
    table.add_column("text", overflow="fold")
    for stream in play.cast.all:
        table.add_row(stream.label, _excerpt(stream.texts[0]))
    return table


def _tails(cast: Cast) -> Table:
    table = Table(show_header=False)
    for stream in cast.all:
        lines = stream.texts[0].strip().splitlines() or [""]
        table.add_row(stream.label, f"{stream.num_tokens:4}", Text(lines[-1][-TAIL_CHARACTERS:]))
    return table


def _excerpt(text: str) -> Text:
    is_long = len(text) > SHOWN_CHARACTERS
    return Text(text[:SHOWN_CHARACTERS].strip("\n") + (" …" if is_long else ""))


def _speeds(play: Play) -> Table:
    table = Table(title="Requests")
    for name in ("mix", "version", "applied", "tokens", "tokens/s", "first token"):
        table.add_column(name)
    for stream in play.cast.all:
        table.add_row(stream.label, *_speed(stream))
    total = sum(stream.num_tokens for stream in play.cast.all)
    table.add_section()
    table.add_row("all together", "", "", str(total), f"{total / play.seconds:.0f}", "")
    return table


def _speed(stream: Stream) -> tuple[str, ...]:
    assert stream.started is not None
    assert stream.finished is not None
    return (
        " ".join(stream.versions.values()) or "-",
        stream.started.apply_mode.value,
        str(stream.num_tokens),
        f"{stream.tokens_per_second:.0f}",
        f"{1000 * stream.finished.timing.first_token_seconds:.0f} ms",
    )


def _adapters(play: Play) -> Table:
    table = Table(title="Adapters, before one was unloaded")
    for name in ("id", "version", "state", "format", "modules", "parameters", "bytes"):
        table.add_column(name)
    for adapter in play.adapters:
        table.add_row(
            adapter.adapter_id,
            adapter.version,
            adapter.state.value,
            adapter.format,
            str(adapter.num_modules),
            f"{adapter.num_parameters:,}",
            f"{adapter.device_bytes:,}",
        )
    return table


def _steps(play: Play) -> Table:
    scrape = play.scrape
    table = Table(title="Steps and loads, from the metrics", show_header=False)
    rows = ", ".join(f"{count:.0f} {apply}" for apply, count in scrape.rows.items())
    table.add_row("steps", f"{scrape.samples['lokr_serve_step_seconds_count']:.0f}")
    table.add_row("time per step", f"{1000 * scrape.mean('lokr_serve_step_seconds'):.1f} ms")
    table.add_row("rows per step", f"{scrape.mean('lokr_serve_step_rows'):.1f}")
    table.add_row("mixes per step", f"{scrape.mean('lokr_serve_step_mixes'):.1f}")
    table.add_row("rows by way of application", rows)
    table.add_row("loads", f"{scrape.samples['lokr_serve_adapter_load_seconds_count']:.0f}")
    load_seconds = scrape.mean("lokr_serve_adapter_load_seconds")
    table.add_row("time per load", f"{1000 * load_seconds:.1f} ms")
    return table

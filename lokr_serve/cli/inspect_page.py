"""The report on adapters as a page that a person can read."""

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lokr_core.formats.inspect import AdapterReport, Problem
from lokr_core.formats.inspect.report import Contents, FileFacts, Fit, FormCount, Listing, Unchanged
from lokr_serve.cli.inspect_mix import MixReport

MAX_SHOWN = 4  # names of a kind; JSON has more
MAX_VALUE_CHARS = 100

Row = Sequence[str]


def print_page(reports: Sequence[AdapterReport], mix: MixReport | None) -> None:
    """Print what was found of each adapter, and what their mix costs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    for report in reports:
        _print_report(console, report)
    if mix is not None:
        _print_facts(console, f"mix {mix.name}", _mix_rows(mix))


def _print_report(console: Console, report: AdapterReport) -> None:
    _print_facts(console, report.adapter_id, _rows(report))
    if report.contents is not None and report.contents.forms:
        _print_table(console, ("MODULES", "ALGORITHM", "RANK", "FACTORS"), _forms(report.contents))
    if report.contents is not None and report.contents.scales:
        _print_table(console, ("MODULES", "SCALE", "SOURCE"), _scales(report.contents))
    if report.warnings or report.problems:
        console.print()
        _print_messages(console, report)
    typer.echo()


def _print_messages(console: Console, report: AdapterReport) -> None:
    problems = list(map(_problem, report.problems))
    hidden = report.num_problems - sum(problem.num_alike for problem in report.problems)
    if hidden > 0:
        problems.append(f"and {hidden} more")
    table = _two_columns()
    for warning in report.warnings:
        table.add_row(Text("warning", style="yellow"), Text(warning))
    for problem in problems:
        table.add_row(Text("problem", style="red"), Text(problem))
    _print(console, table)


def _rows(report: AdapterReport) -> list[tuple[str, str]]:
    rows = [("served", _verdict(report))]
    if report.file is not None:
        rows += _file_rows(report.file, report.version)
    if report.contents is not None:
        rows += _content_rows(report.contents)
    if report.fit is not None:
        rows += _fit_rows(report.fit)
    return rows


def _verdict(report: AdapterReport) -> str:
    if not report.is_served:
        return f"no: {_count(report.num_problems, 'problem')}"
    if report.fit is None:
        return "yes, as far as the file tells; names, shapes and DoRA need --model"
    return "yes"


def _file_rows(file: FileFacts, version: str | None) -> list[tuple[str, str]]:
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in file.dtypes.items())
    trainer = ", ".join(f"{key}={_cut(value)}" for key, value in file.trainer.items())
    return [
        ("path", file.path),
        ("digest", file.digest),
        ("version", version or "-"),
        ("tensors", f"{file.num_tensors:,}: {dtypes}"),
        ("size", f"{file.num_parameters:,} parameters, {file.num_bytes:,} bytes"),
        ("trainer", trainer or "says nothing of itself"),
    ]


def _content_rows(contents: Contents) -> list[tuple[str, str]]:
    algorithms = ", ".join(f"{name} ({count})" for name, count in contents.algorithms.items())
    dora = ", ".join(f"{axis} ({count})" for axis, count in contents.dora.items())
    rows = [
        ("format", contents.format),
        ("modules", f"{contents.num_modules:,}: {algorithms or '-'}"),
        ("DoRA axis", dora),
        ("replaces", _listing(contents.replacements)),
        ("biases", _listing(contents.biases)),
        ("norms", _listing(contents.norms)),
    ]
    return [(name, text) for name, text in rows if text]


def _fit_rows(fit: Fit) -> list[tuple[str, str]]:
    rows = [("binds to", _count(fit.num_bound, "module") + " of the base")]
    rows += [("unchanged", _unchanged(kind)) for kind in fit.unchanged]
    if fit.unmatched.count:
        rows.append(("unmatched", _listing(fit.unmatched)))
    return rows


def _unchanged(unchanged: Unchanged) -> str:
    names = [name if count == 1 else f"{name} ({count})" for name, count in unchanged.names.items()]
    listing = _shown(names, len(names))
    return f"{unchanged.num_modules} of {unchanged.num_in_base} {unchanged.kind}: {listing}"


def _forms(contents: Contents) -> list[Row]:
    return [
        (f"{form.num_modules:,}", form.algorithm, str(form.rank or "-"), _factors(form))
        for form in contents.forms
    ]


def _factors(form: FormCount) -> str:
    return "  ".join(
        f"{leaf.removeprefix('lokr_').removeprefix('hada_').removeprefix('lora_')} "
        + "×".join(map(str, shape))
        for leaf, shape in form.shapes.items()
    )


def _scales(contents: Contents) -> list[Row]:
    return [(f"{s.num_modules:,}", f"{s.scale:g}", s.source) for s in contents.scales]


def _problem(problem: Problem) -> str:
    alike = problem.num_alike - 1
    return problem.message + (f" (and {alike} more alike)" if alike else "")


def _mix_rows(mix: MixReport) -> list[tuple[str, str]]:
    if mix.problem is not None:
        return [("served", f"no: {mix.problem}")]
    rows = [
        ("adapters", f"{mix.adapter_bytes:,} bytes"),
        ("unmerged", f"{mix.unmerged_macs:,} multiply-adds a row, {_share(mix)} of the base's"),
        ("merge", f"{mix.merge_macs:,} multiply-adds once, {mix.merged_bytes:,} bytes"),
    ]
    if mix.rounding_loss is not None:
        rows.append(("rounding", f"merging loses {mix.rounding_loss:.2%} of the change"))
    return rows


def _share(mix: MixReport) -> str:
    return f"{mix.unmerged_macs / mix.base_macs:.1%}" if mix.base_macs else "-"


def _listing(listing: Listing) -> str:
    return f"{listing.count}: {_shown(listing.first, listing.count)}" if listing.count else ""


def _shown(names: Sequence[str], count: int) -> str:
    more = count - min(len(names), MAX_SHOWN)
    return ", ".join(names[:MAX_SHOWN]) + (f" and {more} more" if more else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _cut(value: str) -> str:
    return value if len(value) <= MAX_VALUE_CHARS else f"{value[:MAX_VALUE_CHARS]}…"


def _print_facts(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    console.print(Text(title, style="bold"))
    table = _two_columns()
    for name, text in rows:
        table.add_row(Text(name, style="dim"), Text(text))
    _print(console, table)


def _two_columns() -> Table:
    """Return a table of names, and of texts that wrap beside them."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Row]) -> None:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 1))
    for column in columns:
        is_number = column in ("MODULES", "RANK", "SCALE")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    _print(console, table)


def _print(console: Console, table: Table) -> None:
    """Print a table without the blanks that fill up its lines."""
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())

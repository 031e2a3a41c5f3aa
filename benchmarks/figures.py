"""Figure: one ratio, what it is to be, and where it is written."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Interval, Pairs


class Bound(Enum):
    """Which side of its limit a figure is to lie on."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a ratio is to be."""

    bound: Bound
    limit: float

    def is_met(self, ratio: Interval) -> bool:
        """Whether the limit is kept by any value of the interval."""
        if self.bound is Bound.AT_MOST:
            return ratio.low <= self.limit
        return ratio.high >= self.limit


def at_most(limit: float) -> Target:
    """Return the target of a ratio that is to be small."""
    return Target(bound=Bound.AT_MOST, limit=limit)


def at_least(limit: float) -> Target:
    """Return the target of a ratio that is to be large."""
    return Target(bound=Bound.AT_LEAST, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One ratio."""

    name: str
    against: str  # the baseline
    ratio: Interval
    num_pairs: int  # 0 where it was counted
    medians: tuple[float, float]  # of baseline and candidate
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met, if there is one."""
        if self.target is None:
            return ""
        return "met" if self.target.is_met(self.ratio) else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is compared with what, before it is measured."""

    name: str
    against: str
    unit: str = "ms"  # seconds are shown as milliseconds
    target: Target | None = None

    def of_pairs(self, pairs: Pairs, note: str = "") -> Figure:
        """Return the figure that pairs give."""
        factor = 1e3 if self.unit == "ms" else 1.0
        medians = (
            float(torch.tensor(pairs.baseline).median()) * factor,
            float(torch.tensor(pairs.candidate).median()) * factor,
        )
        return self.figure(pairs.ratio, medians, num_pairs=len(pairs.baseline), note=note)

    def of_counts(self, baseline: float, candidate: float, note: str = "") -> Figure:
        """Return the figure that two counts give."""
        ratio = Interval.exact(candidate / baseline)
        return self.figure(ratio, (baseline, candidate), note=note)

    def figure(
        self, ratio: Interval, medians: tuple[float, float], *, num_pairs: int = 0, note: str = ""
    ) -> Figure:
        """Return the figure of a ratio."""
        return Figure(
            name=self.name,
            against=self.against,
            ratio=ratio,
            num_pairs=num_pairs,
            medians=medians,
            unit=self.unit,
            target=self.target,
            note=note,
        )


def print_figures(title: str, figures: Sequence[Figure], console: Console) -> None:
    """Print figures as a table, their notes below."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "against", "ratio", "95 % interval", "target", "", "medians", "pairs"):
        table.add_column(column, overflow="fold")
    for figure in figures:
        ratio, target = figure.ratio, figure.target
        table.add_row(
            figure.name,
            figure.against,
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}" if figure.num_pairs else "counted",
            f"{target.bound.value} {target.limit:g}" if target is not None else "",
            figure.verdict,
            f"{figure.medians[0]:,.4g} → {figure.medians[1]:,.4g} {figure.unit}",
            str(figure.num_pairs or ""),
        )
    console.print(table)
    for figure in figures:
        if figure.note:
            console.print(f"  {figure.name}: {figure.note}", highlight=False, soft_wrap=True)


def write_figures(path: Path, command: str, results: Mapping[str, Sequence[Figure]]) -> None:
    """Write figures by benchmark as JSON, with the command and the machine that gave them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "results": {name: [_entry(figure) for figure in found] for name, found in results.items()},
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _entry(figure: Figure) -> dict[str, object]:
    target = figure.target
    wanted = None if target is None else f"{target.bound.value} {target.limit:g}"
    return {**asdict(figure), "target": wanted, "verdict": figure.verdict}

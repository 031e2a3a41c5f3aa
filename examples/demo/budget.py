"""A budget for training: so many steps, or so many seconds, whichever is spent first."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The steps that are enough, and the seconds that a slow machine may take for fewer."""

    max_steps: int
    max_seconds: float

    def spend(self, label: str, console: Console) -> Iterator[float]:
        """Yield the share spent before each step, and show it where there is a terminal."""
        columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            task = bars.add_task(label, total=1.0)
            started = time.monotonic()
            for step in range(self.max_steps):
                elapsed = (time.monotonic() - started) / self.max_seconds
                spent = max(step / self.max_steps, elapsed)
                if spent >= 1:
                    break
                bars.update(task, completed=spent)
                yield spent
            bars.update(task, completed=1.0)
        if not console.is_terminal:
            console.print(f"{label}: {time.monotonic() - started:.0f} s")


def warm_up_then_fall(spent: float, *, warm_up: float = 0.05) -> float:
    """Return the share of the learning rate to use when this share of the budget is spent."""
    return min(1.0, (spent + 0.01) / warm_up) * (1.0 - 0.95 * spent)

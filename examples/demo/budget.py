"""A budget for training: so many steps, or so much time, whichever is spent first.

Time is that of the process, so that others on the same machine make training longer and not worse;
but only up to a point.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

MAX_STRETCH = 3.0  # the time on the clock, for each second of the process
SLACK = 0.1  # of the time, for a slow start: else it would make each training another


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The steps that are enough, and the seconds of a core that a slow one may take for fewer."""

    max_steps: int
    max_seconds: float

    def spend(self, label: str, console: Console) -> Iterator[float]:
        """Yield the share spent before each step, and show it where there is a terminal."""
        columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            task = bars.add_task(label, total=1.0)
            started, computed = time.monotonic(), time.process_time()
            cut = ""
            for step in range(self.max_steps):
                on_the_clock = (time.monotonic() - started) / MAX_STRETCH
                elapsed = max(time.process_time() - computed, on_the_clock) / self.max_seconds
                if elapsed >= 1:
                    cut = f", cut short after {step} of {self.max_steps} steps"
                    break
                spent = max(step / self.max_steps, (elapsed - SLACK) / (1 - SLACK))
                bars.update(task, completed=spent)
                yield spent
            bars.update(task, completed=1.0)
        if cut or not console.is_terminal:
            console.print(f"{label}: {time.monotonic() - started:.0f} s{cut}")


def warm_up_then_fall(spent: float, *, warm_up: float = 0.05) -> float:
    """Return the share of the learning rate to use when this share of the budget is spent."""
    return min(1.0, (spent + 0.01) / warm_up) * (1.0 - 0.95 * spent)

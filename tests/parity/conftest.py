"""Prints what the parity tests compared, with the farthest that an answer was off."""

import pytest

from tests.parity.report import Tally

PROPERTY = "parity"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sum up the cases of this run."""
    tally = Tally()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == PROPERTY:
                tally.count(*value)
    if tally.cells:
        terminalreporter.section("parity: relative error of the change")
        for line in tally.lines():
            terminalreporter.write_line(line)

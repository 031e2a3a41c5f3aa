"""Logs: what a process wrote that no operator should ever have to read."""

import json
from collections.abc import Iterator
from pathlib import Path

FAULTS = frozenset(("error", "critical"))
CRASHES = ("Traceback", "Fatal Python error", "terminate called", "Exception ignored")
MAX_FAULTS = 5
MAX_CHARACTERS = 1500


def faults_in_log(path: Path) -> Iterator[str]:
    """Yield the first errors of a log, and how a crash begins."""
    num_faults = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if num_faults == MAX_FAULTS:
            return
        if _is_fault(text):
            num_faults += 1
            yield text[-MAX_CHARACTERS:]


def _is_fault(text: str) -> bool:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:  # what others say while they are imported, or a crash
        return text.startswith(CRASHES)
    return line["level"] in FAULTS or "traceback" in line

"""No trap of the list is without a test."""

import re
from pathlib import Path

NUM_TRAPS = 33


def test_every_trap_has_a_test() -> None:
    """A number that is missing is a trap that nobody watches."""
    text = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    numbers = {int(number) for number in re.findall(r"^def test_trap_(\d\d)_", text, re.MULTILINE)}

    assert numbers == set(range(1, NUM_TRAPS + 1))

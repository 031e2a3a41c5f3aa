"""docs/load.md against the code."""

import re
from pathlib import Path

from lokr_serve.access.waiting_room import ShedReason
from lokr_serve.config import ImageSettings, LimitSettings, TextSettings

PAGE = (Path(__file__).parents[2] / "docs/load.md").read_text()


def test_every_limit_is_documented_with_its_default() -> None:
    """A setting that nobody can find limits nobody."""
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (\S+) \|", PAGE, re.MULTILINE))
    found = {f"limits.{name}": value for name, value in LimitSettings().model_dump().items()}
    for section, settings in (("text", TextSettings()), ("image", ImageSettings())):
        found[f"{section}.max_queue"] = settings.max_queue
        found[f"{section}.max_queue_bytes"] = settings.max_queue_bytes

    assert rows == {name: "none" if value is None else str(value) for name, value in found.items()}


def test_every_reason_of_shedding_is_documented() -> None:
    """An operator reads them off a dashboard."""
    assert all(f"`{reason.value}`" in PAGE for reason in ShedReason)

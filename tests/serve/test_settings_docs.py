"""docs/settings.md against the code."""

import re
from pathlib import Path

from lokr_serve.config import ModelSettings, Settings

PAGE = (Path(__file__).parents[2] / "docs/settings.md").read_text()


def as_written(value: object) -> str:
    """Return a default as the page has it."""
    match value:
        case None | []:
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return f"`{value}`"
        case _:
            return str(value)


def test_every_setting_is_documented_with_its_default() -> None:
    """Whoever runs a server finds there what can be set, without reading code."""
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    settings = Settings(model=ModelSettings(path=Path("base"))).model_dump(mode="json")
    found = {
        f"{section}.{key}": as_written(value)
        for section, values in settings.items()
        for key, value in values.items()
    }

    assert rows == {**found, "model.path": "must be set"}

"""Settings that cannot be right, by themselves or together."""

from pathlib import Path

import pytest

from lokr_serve.config import ModelSettings, Settings, load_settings
from lokr_serve.errors import SettingsError

SETTINGS = Settings(model=ModelSettings(path=Path("m")))
DEFAULTS = SETTINGS.model_dump()
PATHS = [
    (section, key)
    for section, part in SETTINGS
    for key, kind in part.model_json_schema()["properties"].items()
    if "'format': 'path'" in str(kind)
]


def refusal(section: str, key: str, value: object) -> str:
    """Return what is said of a value."""
    tree = {"model": {"path": "m"}}
    with pytest.raises(SettingsError) as caught:
        load_settings({**tree, section: {**tree.get(section, {}), key: value}}, environment={})
    return str(caught.value)


@pytest.mark.parametrize("value", ["inf", "nan", float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        (section, key)
        for section, values in DEFAULTS.items()
        for key, default in values.items()
        if isinstance(default, float) or key in ("max_connection_seconds", "client_rate")
    ],
)
def test_a_number_without_end_is_refused(section: str, key: str, value: object) -> None:
    """A wait without end, or of a time that compares with none, would show much later."""
    assert refusal(section, key, value) == f"{section}.{key}: Input should be a finite number"


@pytest.mark.parametrize(("section", "key"), PATHS)
def test_an_empty_path_is_refused(section: str, key: str) -> None:
    """A variable that a template left empty would mean the folder of the start, and all in it."""
    assert refusal(section, key, "").startswith(f"{section}.{key}: is empty; give a path")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("max_receive_bytes", 2**31, "less than or equal to 2147483647"),
        ("max_send_bytes", 2**31, "less than or equal to 2147483647"),
        ("max_connections", 2**31, "less than or equal to 2147483647"),
        ("max_streams", 2**31, "less than or equal to 2147483647"),
        ("max_connection_seconds", 2147484, "less than or equal to 2147483.647"),
        ("max_connection_seconds", 0.0004, "greater than or equal to 0.001"),
    ],
)
def test_what_grpc_cannot_hold_is_refused_at_its_setting(
    key: str, value: float, words: str
) -> None:
    """Its core takes 32 bits: more ends the start unnamed, and an age of 0 ms lets nobody in."""
    assert refusal("server", key, value) == f"server.{key}: Input should be {words}"


@pytest.mark.parametrize(
    ("first", "second", "is_inner"),
    [
        ("directory", "uploads", True),
        ("directory", "fetched", True),
        ("uploads", "directory", True),
        ("fetched", "directory", True),
        ("uploads", "fetched", True),
        ("directory", "uploads", False),
        ("uploads", "fetched", False),
    ],
)
def test_folders_within_each_other_are_refused(
    tmp_path: Path, first: str, second: str, is_inner: bool
) -> None:
    """What clients upload would be registered by itself, under ids that nobody gave it."""
    outer = tmp_path / "outer"
    (tmp_path / "link").symlink_to(outer)
    inner = tmp_path / "link" / "a" / "b" if is_inner else tmp_path / "x" / ".." / "outer"
    folders = {first: str(outer), second: str(inner)}

    with pytest.raises(SettingsError) as caught:
        load_settings({"model": {"path": "m"}, "adapters": folders}, environment={})

    assert f"adapters.{first}" in str(caught.value)
    assert f"adapters.{second}" in str(caught.value)


def test_folders_beside_each_other_are_fine(tmp_path: Path) -> None:
    """A name that begins like another's is not inside it."""
    folders = {"directory": tmp_path / "a", "uploads": tmp_path / "ab", "fetched": tmp_path / "abc"}

    settings = load_settings({"model": {"path": "m"}, "adapters": folders}, environment={})

    assert settings.adapters.uploads == tmp_path / "ab"

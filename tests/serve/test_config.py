"""Settings that cannot be right together."""

from pathlib import Path

import pytest

from lokr_serve.config import load_settings
from lokr_serve.errors import SettingsError


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

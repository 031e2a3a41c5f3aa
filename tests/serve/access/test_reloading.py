"""Values made from files that change."""

import logging
from pathlib import Path

import pytest

from lokr_serve.access.reloading import Look, Reloaded
from lokr_serve.errors import SettingsError
from tests.serve.access.certificates import mount


def number(contents: tuple[bytes, ...]) -> int:
    """Read a sum of numbers, as a value that may be malformed."""
    try:
        return sum(map(int, contents))
    except ValueError as error:
        raise SettingsError("not a number") from error


def watch(*files: Path) -> Reloaded[int]:
    """Return the value of some files."""
    return Reloaded("numbers", files, number)


def test_a_change_is_taken_at_the_next_look(tmp_path: Path) -> None:
    """Whether the file is written over or another is moved into its place."""
    file, new = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"1")
    value = watch(file)

    assert (value.look(), value.value) == (Look.SAME, 1)
    file.write_bytes(b"2")
    assert (value.look(), value.value) == (Look.RENEWED, 2)
    new.write_bytes(b"3")
    new.rename(file)
    assert (value.look(), value.value) == (Look.RENEWED, 3)


def test_a_change_behind_links_is_seen(tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder, and no file that is seen is written."""
    mount(tmp_path, "v1", a=b"1", b=b"10")
    value = watch(tmp_path / "a", tmp_path / "b")
    mount(tmp_path, "v2", a=b"2", b=b"20")

    assert (value.look(), value.value) == (Look.RENEWED, 22)


def test_what_is_bad_is_reported_once_and_the_good_value_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in a Secret must not lock everyone out, nor fill the log."""
    file = tmp_path / "a"
    file.write_bytes(b"1")
    value = watch(file)
    file.write_bytes(b"x")

    assert [value.look(), value.look()] == [Look.FAILED, Look.FAILED]
    file.unlink()
    assert [value.look(), value.look()] == [Look.FAILED, Look.FAILED]
    assert value.value == 1
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "not a number; the numbers from before stay in force",
        f"security: {file} cannot be read: No such file or directory; "
        "the numbers from before stay in force",
    ]


def test_a_file_that_is_good_again_ends_the_trouble(tmp_path: Path) -> None:
    """Whether it is as it was before, or new."""
    file = tmp_path / "a"
    file.write_bytes(b"1")
    value = watch(file)
    for content, look in ((b"x", Look.FAILED), (b"1", Look.SAME), (b"2", Look.RENEWED)):
        file.write_bytes(content)

        assert value.look() is look
    assert value.value == 2


def test_what_is_bad_from_the_start_is_an_error(tmp_path: Path) -> None:
    """A server that starts with a part of its settings would be open, or closed to all."""
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        watch(tmp_path / "missing")
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(SettingsError, match="not a number"):
        watch(tmp_path / "bad")

"""The bytes that a folder may take, and what is never removed from it."""

import errno
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from lokr_serve.adapters.sources.room import LOCK_NAME, Room, remove_tree, storing
from lokr_serve.errors import SettingsError, StorageFullError


class Usage(NamedTuple):
    """What shutil tells of a disk."""

    total: int
    used: int
    free: int


def make_room(root: Path, max_bytes: int = 100) -> Room:
    """Return a room whose entries start with ``e``."""
    room = Room(
        root,
        max_bytes=max_bytes,
        setting="a.setting",
        root_setting="a.folder",
        is_entry=lambda name: name[0] == "e",
    )
    room.open()
    return room


def write(root: Path, name: str, num_bytes: int, age: int) -> None:
    """Write an entry that was last used so long ago."""
    path = root / name
    if name.endswith("/"):
        path.mkdir()
        (path / "file").write_bytes(b"x" * num_bytes)
    else:
        path.write_bytes(b"x" * num_bytes)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def names(root: Path) -> list[str]:
    """Return what lies in the folder beside its lock."""
    return sorted(path.name for path in root.iterdir() if path.name != LOCK_NAME)


def test_a_folder_belongs_to_one_server_at_a_time(tmp_path: Path) -> None:
    """Two would remove each other's files, and each count only its own."""
    first = make_room(tmp_path)

    with pytest.raises(SettingsError, match=r"^a\.folder: .*: another server uses this folder"):
        make_room(tmp_path)
    first.close()
    make_room(tmp_path).close()


def test_the_oldest_make_way_and_no_more_than_needed(tmp_path: Path) -> None:
    """What was used last is the likeliest to be used again."""
    room = make_room(tmp_path)
    for age, name in enumerate(("e1", "e2/", "e3")):
        write(tmp_path, name, 30, age)

    with room.reserving("new", 40):
        assert names(tmp_path) == ["e1", "e2"]
    with room.reserving("new", 41):
        assert names(tmp_path) == ["e1"]


def test_what_is_held_reserved_or_not_an_entry_stays(tmp_path: Path) -> None:
    """A file that is read, or half written, must not vanish; strangers' files never."""
    room = make_room(tmp_path)
    for age, name in enumerate(("e1", "e2", "e3", "other")):
        write(tmp_path, name, 30, age)
    room.hold("e3")
    room.reserve("e2", 40)

    with pytest.raises(StorageFullError, match=r"a\.setting: 31 bytes do not fit") as caught:
        room.reserve("new", 31)
    assert names(tmp_path) == ["e1", "e2", "e3", "other"]
    assert caught.value.subject == "a.setting"

    with room.reserving("new", 30):
        assert names(tmp_path) == ["e2", "e3", "other"]
        assert not room.remove("e3")
    assert room.release("e3")
    room.unreserve("e2")
    with room.reserving("new", 100):
        assert names(tmp_path) == ["other"]


def test_an_entry_grows_within_what_it_has_already(tmp_path: Path) -> None:
    """A part that is resumed is not counted twice."""
    room = make_room(tmp_path)
    write(tmp_path, "e1", 60, 0)

    with room.reserving("e1", 100), pytest.raises(StorageFullError):
        room.reserve("e2", 1)


def test_a_disk_that_is_full_already_is_found_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is what the operator allows; the disk may have less."""
    room = make_room(tmp_path, 1000)
    write(tmp_path, "e1", 60, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 995, 5))

    with pytest.raises(StorageFullError, match="disk has no 6 bytes"):
        room.reserve("e2", 6)
    room.reserve("e1", 65)


def test_taking_holds_what_is_there_and_makes_it_the_youngest(tmp_path: Path) -> None:
    """Between finding a file and reading it nobody may remove it."""
    room = make_room(tmp_path)
    write(tmp_path, "e1", 30, 100)
    write(tmp_path, "e2", 30, 50)
    (tmp_path / "e-link").symlink_to(tmp_path / "e1")

    assert room.take(lambda name: name == "e1") == "e1"
    assert room.take(lambda name: name in ("e-link", "e9", "x")) is None
    assert not room.remove("e1")
    room.release("e1")
    (tmp_path / "e-link").unlink()
    with room.reserving("new", 70):
        assert "e1" in names(tmp_path)


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    """Whoever can write to the folder must not reach beyond it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    room = make_room(tmp_path / "root")
    (tmp_path / "root" / "e1").symlink_to(outside)

    assert room.remove("e1")
    assert names(tmp_path / "root") == []
    assert (outside / "file").exists()


def test_opening_removes_what_was_half_removed(tmp_path: Path) -> None:
    """A kill in the middle of a removal must not fill the disk."""
    root = tmp_path / "deep" / "root"
    make_room(root).close()
    (root / "trash-1").mkdir()
    (root / "trash-2").write_bytes(b"x")

    make_room(root)

    assert names(root) == []
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """The message names the setting and the folder."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(SettingsError, match=r"a\.folder: .*file"):
        make_room(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(number: int) -> None:
    """Other faults of a disk are no reason to ask for less."""
    with pytest.raises(StorageFullError, match="the disk is full"), storing("a.setting"):
        raise OSError(number, "x")
    with pytest.raises(OSError, match="broken"), storing("a.setting"):
        raise OSError(errno.EIO, "broken")


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    """Two may come to the same thought."""
    remove_tree(tmp_path / "nothing")
    assert make_room(tmp_path).remove("e-nothing")

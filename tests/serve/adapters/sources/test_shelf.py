"""How uploads lie on the disk: whole at once, or a part."""

import errno
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from lokr_serve.adapters.sources.shelf import AnnouncedFile, Shelf, is_entry
from lokr_serve.adapters.sources.stored_file import StoredFile

CONTENT = b"tensors"
FILE = AnnouncedFile(
    digest=hashlib.sha256(CONTENT).hexdigest(), num_bytes=len(CONTENT), config=b"{}"
)


def write_part(shelf: Shelf) -> StoredFile:
    """Return a part that has all of the file."""
    part = shelf.open_part(FILE)
    part.append(CONTENT)
    return part


def names(root: Path) -> list[str]:
    """Return what lies in a folder."""
    return sorted(path.name for path in root.iterdir())


def test_the_key_is_of_the_content_and_its_configuration() -> None:
    """The same tensors with another alpha are another adapter."""
    plain = AnnouncedFile(digest=FILE.digest, num_bytes=7)
    other = AnnouncedFile(digest=FILE.digest, num_bytes=7, config=b"{ }")

    assert plain.key == FILE.digest
    assert len({plain.source, other.source, FILE.source}) == 3


@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_a_step_that_fails_leaves_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What has come need not come again once the disk has room."""
    shelf = Shelf(tmp_path)
    part = write_part(shelf)
    real = Path.rename

    def fail(path: Path, *arguments: object, **options: object) -> None:
        if step == "mkdir" or path.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "full")
        real(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(OSError, match="full"):
            shelf.complete(FILE, part)
    assert names(tmp_path) == [FILE.part_name]
    assert not shelf.holds(FILE)

    shelf.complete(FILE, part)
    part.close()
    assert names(tmp_path) == [FILE.key]
    assert shelf.holds(FILE)


def test_recovery_leaves_strangers_alone(tmp_path: Path) -> None:
    """Only what is named as ours is ours."""
    (tmp_path / "notes.new").mkdir()
    (tmp_path / f"{FILE.key}.new").mkdir()  # a crash before the part was moved

    Shelf(tmp_path).recover()

    assert names(tmp_path) == ["notes.new"]


@pytest.mark.parametrize("owner", ["", "spiffe://a/b"])
def test_recovery_gives_a_part_back_to_its_owner(tmp_path: Path, owner: str) -> None:
    """Whoever has sent a file need not send it again because the server was killed."""
    file = replace(FILE, owner=owner)
    (tmp_path / file.new_name).mkdir()
    (tmp_path / file.new_name / "adapter_model.safetensors").write_bytes(CONTENT)

    Shelf(tmp_path).recover()

    assert names(tmp_path) == [file.part_name]
    assert is_entry(file.part_name)


def test_a_link_is_no_upload(tmp_path: Path) -> None:
    """Whoever can write to the folder must not make the server read elsewhere."""
    shelf = Shelf(tmp_path / "uploads")
    (tmp_path / "uploads").mkdir()
    part = write_part(shelf)
    shelf.complete(FILE, part)
    part.close()
    (tmp_path / "uploads" / FILE.key).rename(tmp_path / "elsewhere")
    (tmp_path / "uploads" / FILE.key).symlink_to(tmp_path / "elsewhere")

    assert shelf.tensors(FILE.key) is None


def test_a_part_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """Somebody else writes to the folder; there is nothing to wait for."""
    path = tmp_path / "part"
    path.write_bytes(CONTENT)
    part = StoredFile(path, max_bytes=100)
    path.write_bytes(b"")

    with pytest.raises(OSError, match="became shorter"):
        part.hash_block()
    part.close()

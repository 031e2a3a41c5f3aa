"""The manifest on disk: read when it has changed and is whole, however it is changed."""

import os
from pathlib import Path

import pytest

from lokr_serve.adapters.manifest.file import ManifestFile
from lokr_serve.adapters.manifest.reading import Manifest
from lokr_serve.errors import ManifestError, SettingsError
from tests.serve.adapters.manifest.declaring import entry, write_manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the manifest lies, with one adapter in it."""
    path = tmp_path / "manifest.yaml"
    write_manifest(path, entry("a"))
    return path


def names(manifest: Manifest | None) -> list[str] | None:
    """Return the declared ids."""
    return None if manifest is None else list(manifest.adapters)


def test_a_file_is_read_once_for_each_change(path: Path) -> None:
    """A look costs a stat for as long as nothing happens."""
    file = ManifestFile(path)
    first, nothing = names(file.first), file.look()
    write_manifest(path, entry("b"))
    looks = [names(file.look()) for _ in range(4)]

    assert (first, nothing) == (["a"], None)
    assert looks == [None, ["b"], None, None]  # the first look only sees that it has changed


def test_a_file_that_is_being_written_is_left_alone(path: Path) -> None:
    """Half a list of adapters is a list of adapters, and the other half would be unloaded."""
    file = ManifestFile(path)
    text = path.read_text()
    with path.open("w") as writer:
        writer.write("adapters: []\n")
        writer.flush()
        looks = [file.look()]
        was_changing = file.is_changing
        writer.write("# more\n")
        writer.flush()
        looks.append(file.look())
    path.write_text(text)
    looks.append(file.look())

    assert looks == [None] * 3
    assert was_changing
    assert names(file.look()) == ["a"]
    assert not file.is_changing


def test_a_file_that_changes_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be a mixture of the two."""
    file = ManifestFile(path)
    write_manifest(path, entry("b"))
    read = ManifestFile._bytes

    def read_slowly(self: ManifestFile) -> bytes:
        data = read(self)
        monkeypatch.undo()
        write_manifest(path, entry("c"))
        return data

    monkeypatch.setattr(ManifestFile, "_bytes", read_slowly)
    looks = [names(file.look()) for _ in range(5)]

    assert looks == [None, None, None, ["c"], None]


def test_a_mistake_is_told_once_and_its_correction_is_read(path: Path) -> None:
    """A log must not fill up with one mistake."""
    file = ManifestFile(path)
    path.write_text("adapters: {")
    assert file.look() is None
    with pytest.raises(ManifestError, match="is no YAML"):
        file.look()
    assert file.look() is None
    write_manifest(path, entry("b"))

    assert [names(file.look()) for _ in range(2)] == [None, ["b"]]


def test_a_file_that_goes_away_is_told_once_and_found_again(path: Path) -> None:
    """It may be back a moment later, and the same as before."""
    file = ManifestFile(path)
    aside = path.with_suffix(".aside")
    path.rename(aside)
    assert file.look() is None
    with pytest.raises(ManifestError, match="is gone"):
        file.look()
    assert file.look() is None
    aside.rename(path)

    assert [names(file.look()) for _ in range(2)] == [None, ["a"]]


def test_a_file_that_cannot_be_read_is_tried_at_each_look(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps it from being read is not seen in its state, and may pass."""
    file = ManifestFile(path)
    write_manifest(path, entry("b"))
    file.look()

    def fail(path: Path, mode: str) -> None:
        raise PermissionError(13, os.strerror(13))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        for _ in range(2):
            with pytest.raises(ManifestError, match="cannot be read: Permission denied"):
                file.look()

    assert names(file.look()) == ["b"]


@pytest.mark.parametrize("kind", ["missing", "folder", "dangling", "pipe"])
def test_what_is_no_file_at_the_start_is_a_mistake_of_the_settings(
    tmp_path: Path, kind: str
) -> None:
    """A pipe would keep the server waiting for ever."""
    path = tmp_path / kind
    match kind:
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)

    with pytest.raises(SettingsError, match=r"adapters.manifest: .* is no file"):
        ManifestFile(path)

"""Paths of the adapter folder: no source leaves it."""

import os
from pathlib import Path

import pytest

from lokr_serve.adapters.sources.folder import FolderSource
from lokr_serve.errors import SourceError
from tests.serve.adapters.test_store import make_file, make_folder


def test_files_folders_and_links_inside_are_found(tmp_path: Path) -> None:
    """Whatever lies inside may be loaded, by a relative path or an absolute one."""
    file = make_file(tmp_path / "a" / "x.safetensors")
    folder = make_folder(tmp_path / "peft")
    (tmp_path / "alias").symlink_to(folder)
    source = FolderSource(tmp_path)

    located = [source.locate(name).path for name in ("a/x.safetensors", "peft", "alias", str(file))]

    assert located == [file, folder, folder, file]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("missing", "does not exist"),
        ("a/x.safetensors/deeper", "does not exist"),
        ("", "not a path inside"),
        (".", "not a path inside"),
        ("../secret.safetensors", "not a path inside"),
        ("a/../../secret.safetensors", "not a path inside"),
        ("/etc/passwd", "not a path inside"),
        ("nul\0", "cannot be resolved"),
        ("loop", "cannot be resolved"),
        ("n" * 300, "cannot be resolved"),
        ("link.safetensors", "is a link out"),
        ("linked/secret.safetensors", "is a link out"),
        ("holds-link", "is a link out"),
        ("pipe", "neither a file nor a folder"),
    ],
)
def test_what_is_not_an_adapter_inside_is_refused(
    tmp_path: Path, source: str, problem: str
) -> None:
    """A source comes from a caller and must not reach any other file of the machine."""
    secret = make_file(tmp_path / "secret.safetensors")
    root = tmp_path / "store"
    make_file(root / "a" / "x.safetensors")
    (make_folder(root / "holds-link") / "extra").symlink_to(secret)
    (root / "link.safetensors").symlink_to(secret)
    (root / "linked").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")

    with pytest.raises(SourceError, match=problem) as caught:
        FolderSource(root).locate(source)

    assert caught.value.source == source
    assert str(tmp_path) not in str(caught.value).removeprefix(f"source {source!r}")


def test_without_an_adapter_folder_there_are_no_paths() -> None:
    """Loading is told why it cannot work."""
    with pytest.raises(SourceError, match=r"adapters\.directory"):
        FolderSource(None).locate("x")

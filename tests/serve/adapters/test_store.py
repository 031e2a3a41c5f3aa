"""The adapter folder: which ids it gives, and what tells that its files have changed."""

import os
from pathlib import Path

import pytest

from lokr_serve.adapters.store import AdapterStore, fingerprint
from lokr_serve.errors import SettingsError


def make_file(path: Path, content: bytes = b"x") -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_folder(path: Path) -> Path:
    """Write a folder that counts as one adapter."""
    make_file(path / "adapter_config.json", b"{}")
    make_file(path / "adapter_model.safetensors")
    return path


def test_scan_names_files_and_folders_by_their_path(tmp_path: Path) -> None:
    """An id is what an operator reads in the folder, so that requests can be written from it."""
    make_file(tmp_path / "style.safetensors")
    make_file(tmp_path / "team" / "a.b.safetensors")
    make_folder(tmp_path / "team" / "peft")
    make_file(tmp_path / "team" / "peft" / "checkpoint" / "inner.safetensors")
    make_file(tmp_path / "README.md")

    found = AdapterStore(tmp_path).scan()

    assert found.sources == {
        "style": "style.safetensors",
        "team/a.b": "team/a.b.safetensors",
        "team/peft": "team/peft",
    }
    assert not found.problems


def test_scan_registers_neither_of_two_that_give_one_id(tmp_path: Path) -> None:
    """To pick one would be a guess that serves the wrong weights half of the time."""
    make_file(tmp_path / "x.safetensors")
    make_folder(tmp_path / "x")
    make_file(tmp_path / "y.safetensors")

    found = AdapterStore(tmp_path).scan()

    assert list(found.sources) == ["y"]
    assert len(found.problems) == 1
    assert "'x'" in found.problems[0]


@pytest.mark.parametrize(
    "name", ["-x.safetensors", "a b.safetensors", "é.safetensors", ".hidden/x.safetensors"]
)
def test_scan_reports_what_gives_no_id(tmp_path: Path, name: str) -> None:
    """A file that is passed over without a word looks like a fault of the server."""
    make_file(tmp_path / name)

    found = AdapterStore(tmp_path).scan()

    assert not found.sources
    assert len(found.problems) == 1
    assert repr(name.partition("/")[0]) in found.problems[0]


def test_scan_reports_ids_that_are_too_long(tmp_path: Path) -> None:
    """An id that no request may name must not be registered."""
    make_file(tmp_path / ("a" * 100) / ("b" * 100 + ".safetensors"))

    found = AdapterStore(tmp_path).scan()

    assert not found.sources
    assert len(found.problems) == 1


def test_scan_follows_links_that_stay_inside_only(tmp_path: Path) -> None:
    """A link out of the store would hand out files that nobody meant to serve."""
    outside = make_file(tmp_path / "outside.safetensors")
    root = tmp_path / "store"
    make_folder(root / "real")
    (root / "alias").symlink_to(root / "real")
    (root / "loop").symlink_to(root)
    (root / "out.safetensors").symlink_to(outside)
    (root / "gone.safetensors").symlink_to(root / "nothing")

    found = AdapterStore(root).scan()

    assert found.sources == {"real": "real", "alias": "alias"}
    assert sorted(problem.split("'")[1] for problem in found.problems) == [
        "gone.safetensors",
        "loop",
        "out.safetensors",
    ]


def test_scan_of_a_folder_that_is_an_adapter_says_so(tmp_path: Path) -> None:
    """Pointing at an adapter in place of the folder above is the likeliest mistake."""
    make_folder(tmp_path)

    found = AdapterStore(tmp_path).scan()

    assert not found.sources
    assert "folder above" in found.problems[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_scan_reports_a_folder_that_it_may_not_read(tmp_path: Path) -> None:
    """One closed folder must not hide the others."""
    make_file(tmp_path / "open.safetensors")
    (tmp_path / "closed").mkdir(mode=0)

    found = AdapterStore(tmp_path).scan()

    assert list(found.sources) == ["open"]
    assert "'closed/'" in found.problems[0]


def test_scan_reports_a_folder_that_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be read must not hide the others."""
    make_file(tmp_path / "open.safetensors")
    (tmp_path / "gone").mkdir()
    scandir = os.scandir

    def remove_first(path: Path) -> object:
        if path.name == "gone":
            path.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_first)

    found = AdapterStore(tmp_path).scan()

    assert list(found.sources) == ["open"]
    assert "'gone/' cannot be read" in found.problems[0]


def test_scan_needs_the_folder_that_is_set(tmp_path: Path) -> None:
    """A misspelt folder must stop the start rather than serve nothing."""
    store = AdapterStore(tmp_path / "missing")

    with pytest.raises(SettingsError, match="missing"):
        store.scan()


def test_a_store_without_a_folder_has_nothing() -> None:
    """A server without adapters is allowed."""
    assert not AdapterStore(None).scan().sources


def test_scan_of_ten_thousand_adapters_reads_none_of_them(tmp_path: Path) -> None:
    """Starting must not cost a read of every adapter; these could not even be read."""
    for index in range(10_000):
        (tmp_path / f"a{index}.safetensors").touch()
    store = AdapterStore(tmp_path)

    found = store.scan()

    assert len(found.sources) == 10_000
    assert not found.problems


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    """A copy kept in memory must not outlive a change of the file that it was made from."""
    folder = make_folder(tmp_path / "peft")
    tensors = folder / "adapter_model.safetensors"

    before = fingerprint(folder), fingerprint(tensors)
    unchanged = fingerprint(folder), fingerprint(tensors)
    make_file(tensors, b"other")

    assert unchanged == before
    assert fingerprint(folder) != before[0]
    assert fingerprint(tensors) != before[1]

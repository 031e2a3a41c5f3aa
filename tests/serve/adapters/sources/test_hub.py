"""Repositories in the layout that Hugging Face's libraries keep them in."""

from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from lokr_serve.adapters.sources.hub import HubSource
from lokr_serve.errors import SettingsError, SourceError

COMMIT = "ab" * 20
OLD_COMMIT = "cd" * 20


def write_repository(root: Path, folder: str = "models--team--style") -> Path:
    """Write a repository of two commits, the older one under a tag and a pull request."""
    repository = root / folder
    for commit, content in ((COMMIT, b"new"), (OLD_COMMIT, b"old")):
        snapshot = repository / "snapshots" / commit / "sub"
        snapshot.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            blob = repository / "blobs" / f"{commit[:4]}-{name[8:11]}"
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(content)
            (snapshot.parent / name).symlink_to(Path("../../blobs") / blob.name)
        (snapshot / "x.safetensors").symlink_to(Path("../../../blobs") / f"{commit[:4]}-mod")
    for name, commit in (("main", COMMIT), ("v1/old", OLD_COMMIT), ("refs/pr/1", OLD_COMMIT)):
        ref = repository / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return repository


@pytest.mark.parametrize(
    ("source", "commit", "path"),
    [
        ("hf://team/style", COMMIT, ""),
        ("hf://team/style@main", COMMIT, ""),
        (f"hf://team/style@{OLD_COMMIT}", OLD_COMMIT, ""),
        ("hf://team/style@v1%2Fold", OLD_COMMIT, ""),
        ("hf://team/style@refs/pr/1", OLD_COMMIT, ""),
        ("hf://team/style@refs/pr/1/sub/x.safetensors", OLD_COMMIT, "sub/x.safetensors"),
        ("hf://team/style/adapter_model.safetensors", COMMIT, "adapter_model.safetensors"),
        ("hf://team/style@main/sub", COMMIT, "sub"),
    ],
)
def test_a_source_names_a_repository_a_revision_and_a_path(
    tmp_path: Path, source: str, commit: str, path: str
) -> None:
    """As the hub's own addresses do; a file keeps the name that says what it is."""
    repository = write_repository(tmp_path)

    located = HubSource(tmp_path).locate(source).path

    assert located == repository / "snapshots" / commit / path
    assert located.is_dir() or located.read_bytes() == (b"new" if commit == COMMIT else b"old")


def test_the_layout_is_the_one_of_hugging_face_s_library(tmp_path: Path) -> None:
    """What its tools have downloaded is found where they would find it without a network."""
    repository = write_repository(tmp_path)

    found = snapshot_download("team/style", cache_dir=tmp_path, local_files_only=True)
    cached = {repo.repo_id for repo in scan_cache_dir(tmp_path).repos}

    assert HubSource(tmp_path).locate("hf://team/style").path == Path(found)
    assert cached == {"team/style"}
    assert repository.is_dir()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("hf://team/other", "nothing is downloaded"),
        ("hf://team/style@dev", "has no revision 'dev'"),
        (f"hf://team/style@{'ef' * 20}", "has no revision"),
        ("hf://team/style@malformed", "malformed refs"),
        ("hf://team/style@huge", "malformed refs"),
        ("hf://team/style@folder", "malformed refs"),
        ("hf://team/style@out", "has no revision"),
        ("hf://team/style/missing", "does not exist"),
        ("hf://team/style/out.safetensors", "is a link out"),
        ("hf://team/style/other-repository.safetensors", "is a link out"),
        ("hf://team/linked", "nothing is downloaded"),
        ("hf://team/style@..", "not of the form"),
        ("hf://team/style@..%2F..", "not of the form"),
        ("hf://team/style@a%2F..%2F..%2Fb", "names no revision"),
        ("hf://team/style@a%2e", "names no revision"),
        ("hf://team/style/../../secret", "not of the form"),
        ("hf://team/style/./adapter_model.safetensors", "not of the form"),
        ("hf://team/style//etc", "not of the form"),
        ("hf://team/..", "not of the form"),
        ("hf://team--style/x", "names no repository"),
        ("hf://team/a..b", "names no repository"),
        ("hf://team", "not of the form"),
        ("hf://", "not of the form"),
        ("hf:///team/style", "not of the form"),
        ("hf://team/style?x=1", "not of the form"),
        ("hf://team/style/%2e%2e/secret", "not of the form"),
        ("hf://team/style/a\0b", "not of the form"),
    ],
)
def test_what_is_not_in_the_repository_s_folder_is_refused(
    tmp_path: Path, source: str, problem: str
) -> None:
    """Links lead into blobs by design, so that one elsewhere would not be noticed."""
    root = tmp_path / "hub"
    repository = write_repository(root)
    other = write_repository(root, "models--team--secret")
    secret = tmp_path / "secret"
    secret.write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "out.safetensors").symlink_to(secret)
    (snapshot / "other-repository.safetensors").symlink_to(other / "blobs" / "abab-mod")
    (root / "models--team--linked").symlink_to(other)
    refs = repository / "refs"
    (refs / "malformed").write_text("../../..")
    (refs / "huge").write_text(COMMIT * 100)
    (refs / "folder").mkdir()
    (refs / "out").symlink_to(secret)
    if "out" not in source and "other" not in source:
        (snapshot / "out.safetensors").unlink()
        (snapshot / "other-repository.safetensors").unlink()

    with pytest.raises(SourceError, match=problem) as caught:
        HubSource(root).locate(source)

    assert caught.value.source == source
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_that_holds_a_link_out_is_refused(tmp_path: Path) -> None:
    """The reader opens what the folder holds by name."""
    repository = write_repository(tmp_path / "hub")
    config = repository / "snapshots" / COMMIT / "adapter_config.json"
    config.unlink()
    config.symlink_to(tmp_path)

    with pytest.raises(SourceError, match="is a link out"):
        HubSource(tmp_path / "hub").locate("hf://team/style")


def test_without_a_hub_folder_there_are_no_repositories(tmp_path: Path) -> None:
    """A misspelt folder stops the start, and a server without one says which setting it lacks."""
    with pytest.raises(SourceError, match=r"adapters\.hub"):
        HubSource(None).locate("hf://team/style")
    with pytest.raises(SettingsError, match=r"adapters\.hub"):
        HubSource(tmp_path / "missing").open()
    HubSource(None).open()
    HubSource(tmp_path).open()

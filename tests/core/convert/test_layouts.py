"""Conversions, held against what the trainers' own loaders make of them."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import lokr_core
from lokr_core.formats.convert import ConversionError, Layout, convert
from lokr_core.spec import ModelSpec
from tests.core.convert.conftest import LYCORIS_SOURCES, PEFT_SOURCES, Source
from tests.core.convert.loaded import (
    assert_same_changes,
    changes_of,
    lycoris_changes,
    peft_changes,
    read,
)
from tests.tiny import ModelFactory

SOURCES = [*PEFT_SOURCES, *LYCORIS_SOURCES]
NOT_OF_PEFT = {"lycoris dora"}
NOT_OF_LYCORIS = {"peft dora", "peft full lokr", "peft lokr", "peft lokr patterns"}


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in NOT_OF_PEFT])
def test_peft_makes_the_same_of_its_layout(
    name: str, source: Source, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """PEFT derives shapes and scales from the configuration that we write."""
    convert(source(name), tmp_path / "out", Layout.PEFT, spec=spec)

    assert_same_changes(
        peft_changes(make_model, tmp_path / "out"), changes_of(read(make_model, source(name)))
    )


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in NOT_OF_LYCORIS])
def test_lycoris_makes_the_same_of_its_layout(
    name: str, source: Source, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """LyCORIS knows no scale but alpha / rank, and none for two full factors."""
    out = tmp_path / "out.safetensors"
    convert(source(name), out, Layout.LYCORIS, spec=spec)

    assert_same_changes(
        lycoris_changes(make_model, out), changes_of(read(make_model, source(name)))
    )


@pytest.mark.parametrize("name", SOURCES)
def test_every_adapter_has_a_canonical_form(
    name: str, source: Source, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """One layout for all that is read; it names the base's own modules."""
    out = tmp_path / "out.safetensors"
    convert(source(name), out, Layout.CANONICAL, spec=spec)

    assert_same_changes(
        changes_of(read(make_model, out)), changes_of(read(make_model, source(name)))
    )
    assert {key.rpartition("_proj.")[0] + "_proj" for key in load_file(out)} == {
        path for path in spec.modules if path.endswith("_proj")
    }
    with safe_open(out, "pt") as file:
        assert file.metadata() == {
            "lokr_serve.format": "canonical",
            "lokr_serve.format_version": "1",
        }


@pytest.mark.parametrize("name", ["peft lokr", "peft loha", "lycoris loha", "lycoris lokr of both"])
def test_a_round_trip_gives_the_same_bytes(
    name: str, source: Source, spec: ModelSpec, tmp_path: Path
) -> None:
    """Nothing is lost on the way there and back, and nothing is left to chance."""
    first, peft, second = tmp_path / "1.safetensors", tmp_path / "peft", tmp_path / "2.safetensors"
    convert(source(name), first, Layout.CANONICAL, spec=spec)
    convert(first, peft, Layout.PEFT, spec=spec)
    convert(peft, second, Layout.CANONICAL, spec=spec)

    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["peft full lokr", "peft full lokr doubled"])
def test_two_full_factors_keep_their_scale(
    name: str, source: Source, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """Nobody but PEFT regards an alpha beside two full factors, so it must be told otherwise."""
    out = tmp_path / "out.safetensors"
    convert(source(name), out, Layout.CANONICAL, spec=spec)
    before = load_file(source(name) / "adapter_model.safetensors")
    after = load_file(out)
    path = "model.layers.0.mlp.up_proj"
    w1 = before[f"base_model.model.{path}.lokr_w1"]

    if name.endswith("doubled"):
        assert after[f"{path}.lokr_w1"].equal(2 * w1)
    else:
        low_rank = after[f"{path}.lokr_w1_a"] @ after[f"{path}.lokr_w1_b"]
        assert low_rank.equal(w1)
        assert after[f"{path}.alpha"] / after[f"{path}.lokr_w1_b"].shape[0] == 0.75


@pytest.mark.parametrize(
    ("name", "layout", "problem"),
    [
        ("lycoris dora", Layout.PEFT, "epsilon"),
        ("peft dora", Layout.LYCORIS, "epsilon"),
        ("peft full lokr", Layout.LYCORIS, "would round"),
    ],
)
def test_what_cannot_be_exact_is_refused(
    name: str, layout: Layout, problem: str, source: Source, spec: ModelSpec, tmp_path: Path
) -> None:
    """The module and the reason are named, and nothing is left behind."""
    with pytest.raises(ConversionError, match=problem) as caught:
        convert(source(name), tmp_path / "out.safetensors", layout, spec=spec)

    assert caught.value.module in spec.modules
    assert not list(tmp_path.iterdir())


def test_paths_need_no_base(source: Source, make_model: ModelFactory, tmp_path: Path) -> None:
    """A file that names modules by their paths can be converted where the base is not at hand."""
    out = tmp_path / "out.safetensors"
    convert(source("peft lokr"), out, Layout.CANONICAL)

    assert_same_changes(
        changes_of(read(make_model, out)), changes_of(read(make_model, source("peft lokr")))
    )


def test_flat_names_need_a_base(source: Source, tmp_path: Path) -> None:
    """Flattening cannot be undone, so a path is not guessed."""
    with pytest.raises(ConversionError, match="give the base model"):
        convert(source("lycoris lokr"), tmp_path / "out.safetensors", Layout.CANONICAL)


def test_nothing_is_overwritten(source: Source, spec: ModelSpec, tmp_path: Path) -> None:
    """A file that is there may be the only copy of another adapter."""
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(lokr_core.AdapterFileError, match="exists already"):
        convert(source("peft lokr"), out, Layout.CANONICAL, spec=spec)

    assert out.read_text() == "mine"


def test_a_file_needs_the_suffix_that_it_is_read_by(source: Source, tmp_path: Path) -> None:
    """Else the server would not find it."""
    with pytest.raises(lokr_core.AdapterFileError, match="safetensors"):
        convert(source("peft lokr"), tmp_path / "out", Layout.CANONICAL)


def test_a_folder_that_is_not_there_is_named(source: Source, tmp_path: Path) -> None:
    """The operating system's own words are kept."""
    with pytest.raises(lokr_core.AdapterFileError, match="No such file"):
        convert(source("peft lokr"), tmp_path / "a" / "out.safetensors", Layout.CANONICAL)


@pytest.mark.parametrize("name", ["file/out.safetensors", f"{'x' * 250}.safetensors"])
def test_a_place_that_cannot_be_written_to_is_named(
    name: str, source: Source, tmp_path: Path
) -> None:
    """Also where not even a half-written file could be removed again."""
    (tmp_path / "file").touch()
    with pytest.raises(lokr_core.AdapterFileError, match="cannot be written"):
        convert(source("peft lokr"), tmp_path / name, Layout.CANONICAL)

    assert [path.name for path in tmp_path.iterdir()] == ["file"]

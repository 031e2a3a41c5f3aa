"""What commands print."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lokr_serve.cli.output import byte_progress, print_json, print_table, progress
from lokr_serve.types import AdapterState


def test_json_spells_dates_enums_and_paths(capsys: pytest.CaptureFixture[str]) -> None:
    """Machines read them without knowing Python."""
    print_json(
        {
            "state": AdapterState.READY,
            "created": datetime(2026, 11, 22, tzinfo=UTC),
            "path": Path("a/b"),
        }
    )

    assert json.loads(capsys.readouterr().out) == {
        "state": "ready",
        "created": "2026-11-22T00:00:00+00:00",
        "path": "a/b",
    }


def test_what_has_no_form_in_json_is_a_bug() -> None:
    """A repr in the output would be parsed by someone."""
    with pytest.raises(TypeError, match="no form in JSON"):
        print_json({"x": object()})


def test_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A script must get the whole id."""
    long = "a" * 300
    print_table(("ID",), [(long,)])

    assert long in capsys.readouterr().out


def test_progress_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs of machines stay free of control characters."""
    with progress("loading") as stop:
        stop()
    assert capsys.readouterr().err == ""

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress("loading") as stop:
        stop()
    assert "loading" in capsys.readouterr().err


def test_a_bar_of_bytes_is_for_terminals_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends a gigabyte wants to see it go; a log does not."""
    with byte_progress("sending a") as sent:
        sent(1, 2)
    silent = capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    with byte_progress("sending a") as sent:
        sent(1_000_000, 2_000_000)
    shown = capsys.readouterr().err

    assert silent == ""
    assert "sending a" in shown


def test_names_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths may have what rich takes for markup, for an emoji, or for a field of a format."""
    name = "a/[/v2]/[red]x{b}:smile:"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with progress(name) as stop:
        stop()
    with byte_progress(name) as sent:
        sent(1, 2)
    print_table(["id"], [[name]])
    shown = capsys.readouterr()

    assert shown.err.count(name) >= 2
    assert name in shown.out

"""Settings on the command line."""

import json
from pathlib import Path

import pytest

from tests.serve.cli.conftest import Run


def shown(run: Run, *arguments: str) -> dict[str, dict[str, object]]:
    """Return the settings that `config show` prints."""
    outcome = run("config", "show", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    tree: dict[str, dict[str, object]] = json.loads(outcome.out)
    return tree


def test_flags_win_over_the_environment_and_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three places can set a value; which one holds must be plain."""
    file = tmp_path / "settings.toml"
    file.write_text("[text]\nmax_rows = 1\nmax_queue = 2\npage_tokens = 16\n")
    monkeypatch.setenv("LOKR_SERVE__TEXT__MAX_ROWS", "3")
    monkeypatch.setenv("LOKR_SERVE__TEXT__MAX_QUEUE", "4")
    text = shown(run, "--model", "x", "--config", str(file), "--max-queue", "5")["text"]

    assert (text["page_tokens"], text["max_rows"], text["max_queue"]) == (16, 3, 5)


@pytest.mark.parametrize(
    ("flag", "value", "section", "key", "expected"),
    [
        ("--model", "base", "model", "path", "base"),
        ("--device", "cpu", "model", "device", "cpu"),
        ("--dtype", "float16", "model", "dtype", "float16"),
        ("--threads", "3", "model", "num_threads", 3),
        ("--adapter-dir", "d", "adapters", "directory", "d"),
        ("--manifest", "m.yaml", "adapters", "manifest", "m.yaml"),
        ("--device-bytes", "1", "adapters", "device_bytes", 1),
        ("--host-bytes", "2", "adapters", "host_bytes", 2),
        ("--merge-cache-bytes", "3", "adapters", "merge_cache_bytes", 3),
        ("--allow-lossy-merge", None, "adapters", "allow_lossy_merge", True),
        ("--listen", "h:1", "server", "listen", "h:1"),
        ("--admin-listen", "h:2", "server", "admin_listen", "h:2"),
        ("--metrics-listen", "h:3", "server", "metrics_listen", "h:3"),
        ("--no-reflection", None, "server", "reflection", False),
        ("--lame-duck-seconds", "2.5", "server", "lame_duck_seconds", 2.5),
        ("--drain-seconds", "1.5", "server", "drain_seconds", 1.5),
        ("--log-level", "debug", "server", "log_level", "debug"),
        ("--max-queue", "6", "text", "max_queue", 6),
        ("--max-queue", "6", "image", "max_queue", 6),
        ("--max-rows", "7", "text", "max_rows", 7),
        ("--max-rows", "7", "image", "max_rows", 7),
        ("--max-requests", "8", "image", "max_requests", 8),
        ("--max-pixels", "9", "image", "max_pixels", 9),
        ("--max-steps", "10", "image", "max_steps", 10),
        ("--gather-seconds", "0.5", "image", "gather_seconds", 0.5),
    ],
)
def test_each_flag_sets_its_setting(
    run: Run, flag: str, value: str | None, section: str, key: str, expected: object
) -> None:
    """A flag that sets another value, or none, would go unnoticed."""
    arguments = (flag,) if value is None else (flag, value)
    base = () if flag == "--model" else ("--model", "x")

    assert shown(run, *base, *arguments)[section][key] == expected


def test_settings_are_shown_to_people_one_to_a_line(run: Run) -> None:
    """Who debugs a deployment reads them."""
    outcome = run("config", "show", "--model", "x")

    assert "text.max_rows" in outcome.out
    assert outcome.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--model", "x", "--max-rows", "0"),
        ("--model", "x", "--listen", "nowhere"),
        ("--model", "x", "--dtype", "int8"),
        ("--model", "x", "--config", "/nowhere.toml"),
        ("--model", "x", "--max-rows", "many"),
        ("--model", "x", "--unknown"),
    ],
)
@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_a_setting_that_is_wrong_stops_the_start(
    run: Run, command: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    """A typo must not become a default."""
    outcome = run(*command, *arguments)

    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        (
            {},
            (),
            "model.path: is required; give it by --model, LOKR_SERVE__MODEL__PATH or the settings "
            "file",
        ),
        (
            {"LOKR_SERVE__TEXT__BOGUS": "1"},
            ("--model", "x"),
            "text.bogus: is no setting; `lokr-serve config show --model DIR` lists those that are",
        ),
        ({}, ("--model", "x", "--listen", "a"), "server.listen: must be HOST:PORT, not 'a'"),
        (
            {"LOKR_SERVE__ADAPTERS__DIRECTORY": ""},
            ("--model", "x"),
            "adapters.directory: is empty; give a path, or leave the setting out",
        ),
        *(
            (
                {},
                ("--model", "x", flag, ""),
                f"{setting}: is empty; give a path, or leave the setting out",
            )
            for flag, setting in (
                ("--model", "model.path"),
                ("--adapter-dir", "adapters.directory"),
                ("--manifest", "adapters.manifest"),
                ("--clients", "security.clients"),
                ("--certificate", "security.certificate"),
                ("--private-key", "security.private_key"),
                ("--client-ca", "security.client_ca"),
            )
        ),
    ],
)
def test_a_wrong_setting_is_told_by_its_place_and_in_plain_words(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    """Who starts a server does not know the library that checks its settings."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = run("config", "show", *arguments)

    assert outcome.err == f"lokr-serve: {expected}\n"

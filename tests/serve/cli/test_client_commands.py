"""The commands that talk to a server."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from lokr_serve.cli.generate import print_text
from lokr_serve.errors import EngineStoppedError
from lokr_serve.types import Chunk
from tests.serve.cli.conftest import Run
from tests.serve.running import Connection

NOBODY = ("--server", "127.0.0.1:1", "--timeout", "5")


def test_generate_prints_the_text_and_nothing_else(run: Run, shared_server: Connection) -> None:
    """Its output can be piped on."""
    flags = ("--server", shared_server.addresses.listen, "--temperature", "0", "--max-tokens", "6")
    text = run("generate", "--prompt", "Hello", *flags)
    events = run("generate", "--prompt", "Hello", "--json", *flags)
    lines = [json.loads(line) for line in events.out.splitlines()]

    assert (text.code, text.err) == (0, "")
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "finished"]
    assert text.out == "".join(e["text"] for e in lines if e["event"] == "chunk") + "\n"


def test_generate_mixes_adapters(run: Run, shared_server: Connection) -> None:
    """Weights are written as in the mix's name."""
    outcome = run(
        "generate",
        *("--adapter", "poet*0.7", "--adapter", "pirate"),
        *("--prompt", "x", "--max-tokens", "2", "--apply", "unmerged", "--json"),
        *("--server", shared_server.addresses.listen),
    )
    started = json.loads(outcome.out.splitlines()[0])

    assert started["mix_name"] == "pirate+poet*0.7"
    assert started["apply_mode"] == "unmerged"


def test_generate_prints_several_sequences_one_after_the_other(
    run: Run, shared_server: Connection
) -> None:
    """Interleaved, they could not be read."""
    outcome = run(
        *("generate", "--prompt", "x", "--n", "2", "--seed", "1", "--max-tokens", "3"),
        *("--server", shared_server.addresses.listen),
    )

    assert outcome.code == 0
    assert "[0] " in outcome.out
    assert "[1] " in outcome.out


@pytest.mark.parametrize("source", ["file", "-"])
def test_generate_reads_a_prompt_from_a_file(
    run: Run,
    shared_server: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    """Long prompts do not fit a command line."""
    (tmp_path / "file").write_text("Hello")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    flags = ("--server", shared_server.addresses.listen, "--temperature", "0", "--max-tokens", "6")

    assert run("generate", "--prompt-file", source, "--chat", *flags).out == (
        run("generate", "--prompt", "Hello", "--chat", *flags).out
    )


def test_adapters_are_loaded_listed_and_unloaded(run: Run, shared_server: Connection) -> None:
    """The life of an adapter, as an operator drives it."""
    server = ("--server", shared_server.addresses.admin_listen)
    loaded = run(
        "adapters", "load", "cli/new", "poet", "--pinned", "--ttl", "60", "--json", *server
    )
    assert json.loads(loaded.out)["pinned"]
    assert json.loads(run("adapters", "unpin", "cli/new", "--json", *server).out)["pinned"] is False
    assert json.loads(run("adapters", "pin", "cli/new", "--json", *server).out)["pinned"] is True
    updated = run("adapters", "update", "cli/new", "--no-pinned", "--ttl", "0", "--json", *server)
    assert json.loads(updated.out)["pinned"] is False
    assert "state" in run("adapters", "show", "cli/new", *server).out
    listed = run("adapters", "list", "cli/", "--json", *server)
    assert [adapter["adapter_id"] for adapter in json.loads(listed.out)] == ["cli/new"]
    assert "cli/new" in run("adapters", "list", *server).out
    assert "bytes freed" in run("adapters", "unload", "cli/new", *server).out

    gone = run("adapters", "unload", "cli/new", "--json", *server)
    assert gone.code == 1
    assert gone.err == ("lokr-serve: adapter 'cli/new' is not registered; call LoadAdapter first\n")


def test_unload_tells_machines_what_it_freed(run: Run, shared_server: Connection) -> None:
    """Scripts that make room want the number."""
    server = ("--server", shared_server.addresses.admin_listen)
    run("adapters", "load", "cli/new", "poet", *server)
    outcome = run("adapters", "unload", "cli/new", "--force", "--json", *server)

    assert json.loads(outcome.out)["freed_bytes"] > 0


def test_health_is_an_exit_code(run: Run, shared_server: Connection) -> None:
    """Scripts wait for it."""
    server = ("--server", shared_server.addresses.listen)

    assert run("health", *server).out == "serving\n"
    assert json.loads(run("health", "liveness", "--json", *server).out) == {"status": "serving"}
    assert run("health", "nothing", *server).code == 1


def test_a_server_that_does_not_serve_is_an_exit_code_too(run: Run) -> None:
    """A script that waits for a server must not take its answer for readiness."""
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = HealthServicer()
    servicer.set("", HealthCheckResponse.NOT_SERVING)
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    outcome = run("health", "--server", f"127.0.0.1:{port}")
    server.stop(0)

    assert (outcome.code, outcome.out) == (1, "not_serving\n")


def test_generate_tells_people_how_it_went(
    run: Run, shared_server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the mix, the seed and the speed stand beside the text, not in it."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    flags = ("--server", shared_server.addresses.listen, "--max-tokens", "3", "--seed", "7")
    outcome = run("generate", "--prompt", "x", *flags)

    assert "base model (unmerged), seed 7" in outcome.err
    assert "3 tokens in" in outcome.err
    assert "seed" not in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("health",),
        ("generate", "--prompt", "x"),
        ("adapters", "list"),
        ("adapters", "load", "a", "b"),
        ("adapters", "unload", "a"),
    ],
)
def test_a_server_that_is_not_there_is_one_line_of_error(
    run: Run, arguments: tuple[str, ...]
) -> None:
    """No traceback, and an exit code that differs from a mistake in usage."""
    outcome = run(*arguments, *NOBODY)

    assert outcome.code == 1
    assert outcome.err.startswith("lokr-serve: ")
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--prompt"),
        (("--prompt", "x", "--prompt-file", "y"), "--prompt"),
        (("--prompt-file", "/nowhere"), "/nowhere"),
        (("--prompt", "x", "--adapter", "a*b"), "a*b"),
        (("--prompt", "x", "--adapter", "*1"), "*1"),
        (("--prompt", "x", "--adapter", "a*inf"), "a*inf"),
        (("--prompt", "x", "--adapter", "a", "--adapter", "a*2"), "twice"),
        (("--prompt", "x", "--temperature", "-1"), "temperature"),
        (("--prompt", "x", "--apply", "sideways"), "sideways"),
    ],
)
def test_mistakes_in_usage_are_told_apart(run: Run, arguments: tuple[str, ...], word: str) -> None:
    """They are found before a server is called."""
    outcome = run("generate", *arguments, *NOBODY)

    assert outcome.code == 2
    assert word in outcome.err


@pytest.mark.parametrize(("n", "printed"), [(1, "half a wo\n"), (2, "")])
def test_text_that_is_cut_off_ends_its_line(
    capsys: pytest.CaptureFixture[str], n: int, printed: str
) -> None:
    """The error that follows must not be glued to half a word, and no line is ended twice."""

    def events() -> Iterator[Chunk]:
        yield Chunk(index=0, text="half a wo", token_ids=(1,))
        raise EngineStoppedError("the engine has stopped")

    with pytest.raises(EngineStoppedError):
        print_text(events(), n=n)

    assert capsys.readouterr().out == printed

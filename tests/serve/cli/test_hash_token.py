"""``config hash-token``."""

import hashlib
import io
import json

import pytest

from tests.serve.cli.conftest import Run

TOKEN = "a-token-that-nobody-guesses"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


def test_a_token_on_standard_input_is_hashed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line can be pasted; what an editor leaves at the end of a file does not count."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    outcome = run("config", "hash-token")

    assert (outcome.code, outcome.out) == (0, f'tokens_sha256  ["{DIGEST}"]\n')


def test_a_new_token_is_drawn_and_told_once(run: Run) -> None:
    """Nobody has to invent one; two are never the same."""
    first, second = (
        json.loads(run("config", "hash-token", "--generate", "--json").out) for _ in range(2)
    )

    assert first["sha256"] == hashlib.sha256(first["token"].encode()).hexdigest()
    assert len(first["token"]) >= 43
    assert first["token"] != second["token"]


@pytest.mark.parametrize(("token", "words"), [("short", "at least 16"), ("a b" * 9, "spaces")])
def test_a_poor_token_is_refused_without_being_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, token: str, words: str
) -> None:
    """A short one could be guessed from its hash, and one with spaces cannot be sent."""
    monkeypatch.setattr("sys.stdin", io.StringIO(token))
    outcome = run("config", "hash-token")

    assert outcome.code == 2
    assert words in outcome.err
    assert token not in outcome.err

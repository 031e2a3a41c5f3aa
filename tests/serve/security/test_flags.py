"""Credentials on the command line."""

from pathlib import Path

import pytest

from lokr_serve.cli import main
from tests.serve.access.certificates import issue
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.pki import Pki, token_of


def test_commands_have_flags_for_all_of_it(
    model_folder: Path,
    adapter_folder: Path,
    clients_file: Path,
    pki: Pki,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A person at a terminal needs nothing else to reach a server that is closed."""
    pair = issue(pki.authority, "person.example")
    files = {"token": f"{token_of('everything')}\n".encode(), "crt": pair.chain}
    files["key"] = pair.private_key
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    security = {"clients": clients_file, **pki.settings(client_ca=True)}
    flags = ["--tls-ca", str(pki.ca_file), "--tls-certificate", str(tmp_path / "crt")]
    flags += ["--tls-key", str(tmp_path / "key"), "--token-file", str(tmp_path / "token")]
    outputs: dict[str, str] = {}
    with running_server(tiny_settings(model_folder, adapter_folder, security=security)) as server:
        addresses = server.ready.result()
        for name, arguments in {
            "health": ["health", "--server", addresses.listen],
            "list": ["adapters", "list", "--server", addresses.admin_listen],
            "pin": ["adapters", "unpin", "poet", "--server", addresses.admin_listen],
            "generate": ["generate", "--prompt", "x", "--json", "--server", addresses.listen],
        }.items():
            with pytest.raises(SystemExit) as caught:
                main([*arguments, *flags])
            outputs[name] = capfd.readouterr().out
            assert caught.value.code in (None, 0), name

    assert outputs["health"] == "serving\n"
    assert "poet" in outputs["list"]
    assert "finished" in outputs["generate"]


def test_a_command_without_what_a_server_wants_tells_its_flags(
    model_folder: Path,
    adapter_folder: Path,
    clients_file: Path,
    pki: Pki,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The server knows metadata alone, and the transport says no more than that it was closed."""
    security = {"clients": clients_file, **pki.settings(client_ca=False)}
    said: list[str] = []
    with running_server(tiny_settings(model_folder, adapter_folder, security=security)) as server:
        command = ["generate", "--prompt", "x", "--server", server.ready.result().listen]
        for flags in ([], ["--tls-ca", str(pki.ca_file)]):
            with pytest.raises(SystemExit):
                main([*command, *flags])
            said.append(capfd.readouterr().err)

    assert "(is it the right --server, and does it want --tls or --tls-ca?)" in said[0]
    assert "(--token-file, or --tls-certificate and --tls-key)" in said[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--token-file", "nowhere"), "--token-file: nowhere cannot be read"),
        (("--token-file", "two"), "printable ASCII"),
        (("--tls-certificate", "two"), "go together"),
    ],
)
def test_flags_that_make_no_credentials_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, str],
    words: str,
) -> None:
    """Before anything is sent, and without the token."""
    monkeypatch.chdir(tmp_path)
    Path("two").write_text("secret words")
    with pytest.raises(SystemExit) as caught:
        main(["health", "--server", "127.0.0.1:1", *flags])
    said = capsys.readouterr().err

    assert caught.value.code == 2
    assert words in said
    assert "secret" not in said

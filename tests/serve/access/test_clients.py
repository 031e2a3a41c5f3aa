"""The file of clients: what it says, and how it is refused without telling a secret."""

import hashlib
from pathlib import Path

import pytest

from lokr_serve.access.clients import parse_clients
from lokr_serve.access.directory import ClientDirectory
from lokr_serve.errors import SettingsError
from lokr_serve.types import Caller, ClientLimits, Permission, Priority

FILE = Path("/etc/lokr/clients.toml")
TOKEN = "a-token-that-nobody-guesses"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
OTHER = "0" * 64


def parse(text: str, *, has_client_ca: bool = True) -> ClientDirectory:
    """Read a file of clients."""
    return parse_clients(FILE, text.encode(), has_client_ca=has_client_ca)


def client(**fields: str) -> str:
    """Return a client of a file, each field as it stands there."""
    values = {"name": '"ci"', "tokens_sha256": f'["{DIGEST}"]', "permissions": '["infer"]'}
    values.update(fields)
    lines = (f"{name} = {value}" for name, value in values.items() if value)
    return "\n".join(("[[clients]]", *lines, ""))


def test_a_client_is_found_with_all_that_the_file_gives_it() -> None:
    """What is not taken over would be a limit that nobody keeps."""
    directory = parse(
        client(
            permissions='["infer", "admin"]',
            adapters='["team-a/*", "style"]',
            sources='["s3://models/team-a/*"]',
            max_requests="3",
            rate="0.5",
            queue_share="0.25",
            adapter_bytes="1000",
            max_priority='"normal"',
        )
    )

    assert directory.by_token(TOKEN) == Caller(
        name="ci",
        permissions=frozenset(Permission),
        adapters=("team-a/*", "style"),
        sources=("s3://models/team-a/*",),
        limits=ClientLimits(
            max_requests=3,
            rate=0.5,
            queue_share=0.25,
            adapter_bytes=1000,
            max_priority=Priority.NORMAL,
        ),
    )


def test_what_is_left_out_allows_every_adapter_and_the_servers_limits() -> None:
    """The shortest useful entry has a name, a token and a permission."""
    caller = parse(client()).by_token(TOKEN)

    assert caller == Caller(name="ci", permissions=frozenset((Permission.INFER,)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (client(token=f'"{TOKEN}"'), "clients.0.token: is nothing that a client has"),
        (client(tokens_sha256=f'["{TOKEN}"]'), "entry 0 is no SHA-256.*hash-token"),
        (client(tokens_sha256=f'["{DIGEST}", "{DIGEST[:-1]}"]'), "entry 1 is no SHA-256"),
        (client(tokens_sha256="", certificates=""), "needs tokens_sha256 or certificates"),
        (client(permissions="[]"), "clients.0.permissions: is empty; give infer"),
        (client(permissions=""), "clients.0.permissions: is required"),
        (client(permissions='["root"]'), "clients.0.permissions.0: .*'infer' or 'admin'"),
        (client(name='"a b"'), "clients.0.name: must be at most 128"),
        (client(name=""), "clients.0.name: is required"),
        (client(adapters='["a*b"]'), "clients.0.adapters: entry 0 is no adapter id"),
        (client(adapters='[""]'), "clients.0.adapters: entry 0"),
        (client(sources='[""]'), "clients.0.sources: has an empty entry"),
        (client(certificates='[""]'), "clients.0.certificates: has an empty entry"),
        (client(rate="0"), "clients.0.rate: .*greater than 0"),
        (client(rate="inf"), "clients.0.rate: .*finite"),
        (client(max_requests='"3"'), "clients.0.max_requests: .*integer"),
        (client(queue_share="1.5"), "clients.0.queue_share: .*less than or equal to 1"),
        (client(max_priority='"urgent"'), "clients.0.max_priority"),
        (client() + client(tokens_sha256=f'["{OTHER}"]'), r"clients.1 \(ci\): has the name"),
        (
            client() + client(name='"b"', tokens_sha256=f'["{OTHER}", "{DIGEST.upper()}"]'),
            r"clients.1 \(b\).tokens_sha256.1: client ci has the same",
        ),
        (
            client(certificates='["x"]')
            + client(name='"b"', tokens_sha256="", certificates='["x"]'),
            r"clients.1 \(b\).certificates.0: client ci has the same",
        ),
        ("", "clients: is required"),
        ("clients = []", "names no client"),
        ("tokens = 1\n" + client(), "tokens: is nothing that a client has"),
        ("[[clients]", "is no TOML"),
    ],
)
def test_a_malformed_file_is_refused_with_place_and_remedy(text: str, words: str) -> None:
    """Who wrote it must find the mistake; and whoever reads the log must not find a token."""
    with pytest.raises(SettingsError, match=words) as caught:
        parse(text)

    assert str(caught.value).startswith(f"security.clients: {FILE}: ")
    assert TOKEN not in str(caught.value)
    assert DIGEST not in str(caught.value)
    assert caught.value.__cause__ is None  # its text has the values


def test_a_file_that_is_no_text_is_refused() -> None:
    """A Secret may hold anything."""
    with pytest.raises(SettingsError, match="is no TOML"):
        parse_clients(FILE, b"\xff\xfe", has_client_ca=False)


def test_certificates_need_an_authority_to_rely_on() -> None:
    """Without one nobody could ever come by a certificate."""
    with pytest.raises(SettingsError, match=r"certificates: need security\.client_ca"):
        parse(client(certificates='["x"]'), has_client_ca=False)

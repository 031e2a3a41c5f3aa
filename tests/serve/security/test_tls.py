"""TLS and certificates, through real connections."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from lokr_serve.client import (
    AsyncClient,
    Client,
    Credentials,
    Health,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from lokr_serve.errors import SettingsError
from lokr_serve.types import AdapterWeight, GenerationRequest, SamplingParams, TextPrompt
from tests.serve.access.certificates import Pair, issue, mount
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.pki import Pki, token_of, write_clients

QUICK = {"reload_seconds": 0.02}
SHORT = GenerationRequest(prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=1))
WITH_POET = GenerationRequest(
    prompt=TextPrompt(text="x"),
    adapters=(AdapterWeight(adapter_id="poet"),),
    sampling=SamplingParams(max_tokens=1),
)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients do not try again to reach who does not talk to them."""
    monkeypatch.setattr(
        "lokr_serve.client.sync.channel_options", lambda: (("grpc.enable_retries", 0),)
    )


def generates(address: str, credentials: Credentials, request: GenerationRequest = SHORT) -> bool:
    """Send a request on a new connection; whether the server knew who sent it."""
    with Client(address, credentials=credentials, timeout_seconds=20) as client:
        try:
            client.generate_once(request)
        except (UnauthenticatedError, UnavailableError):
            return False
    return True


def shown_certificate(address: str) -> bytes:
    """Return the certificate that a server shows on a new connection, DER."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def der(pair: Pair) -> bytes:
    """Return a pair's own certificate in the same form."""
    return ssl.PEM_cert_to_DER_cert(pair.chain.decode().split("\n-----BEGIN", 1)[0])


def wait_until(holds: Callable[[], bool]) -> None:
    """Look at what another thread changes, until it has."""
    deadline, pause = time.monotonic() + 20, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.01)


def test_tokens_go_over_tls(model_folder: Path, clients_file: Path, pki: Pki) -> None:
    """Both listeners are encrypted; a server that is not the right one gets no token."""
    settings = tiny_settings(
        model_folder, security={"clients": clients_file, **pki.settings(client_ca=False)}
    )
    stranger = Credentials(
        token=token_of("reader"), root_certificates=trustme.CA().cert_pem.bytes()
    )
    with running_server(settings) as server:
        addresses = server.ready.result()
        for address in (addresses.listen, addresses.admin_listen):
            assert generates(address, pki.credentials(token=token_of("reader")))
            assert not generates(address, pki.credentials())
            assert not generates(address, stranger)
            assert not generates(address, Credentials(token=token_of("reader")))


async def test_the_asyncio_client_has_credentials_too(
    model_folder: Path, adapter_folder: Path, clients_file: Path, pki: Pki
) -> None:
    """Every kind of call, with a token over TLS."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        security={"clients": clients_file, **pki.settings(client_ca=False)},
    )
    with running_server(settings) as server:
        credentials = pki.credentials(token=token_of("reader"))
        async with AsyncClient(server.ready.result().listen, credentials=credentials) as client:
            events = [event async for event in client.generate(SHORT)]
            adapter = await client.get_adapter("poet")

            assert await client.health() is Health.SERVING
    assert (len(events), adapter.adapter_id) == (3, "poet")


def test_certificates_say_who_calls(
    model_folder: Path, adapter_folder: Path, pki: Pki, tmp_path: Path
) -> None:
    """By common name, by DNS name or by SPIFFE id; a token names another client behind one."""
    clients = tmp_path / "clients.toml"
    write_clients(
        clients,
        named='permissions = ["infer"]\nadapters = []\ncertificates = ["team.example"]',
        workload='permissions = ["infer"]\ncertificates = ["spiffe://cluster/ns/a"]',
        gateway='permissions = ["admin"]\ncertificates = ["gateway.example"]',
    )
    settings = tiny_settings(
        model_folder, adapter_folder, security={"clients": clients, **pki.settings(client_ca=True)}
    )
    named = pki.credentials("team.example")
    common = pki.credentials_of(issue(pki.authority, "x.example", common_name="team.example"))
    workload = pki.credentials_of(pki.spiffe("spiffe://cluster/ns/a"))
    posing = pki.credentials_of(
        issue(pki.authority, "x.example", common_name="spiffe://cluster/ns/a")
    )
    with running_server(settings) as server:
        address = server.ready.result().listen

        assert generates(address, workload, WITH_POET)
        assert generates(address, named)
        assert generates(address, common)
        for credentials in (named, common):
            with pytest.raises(PermissionDeniedError, match="'named' may not use adapter 'poet'"):
                generates(address, credentials, WITH_POET)
        assert not generates(address, posing)
        assert not generates(address, pki.credentials("nobody.example"))
        with pytest.raises(PermissionDeniedError, match="'gateway' lacks"):
            generates(address, pki.credentials("gateway.example"))
        assert generates(
            address, pki.credentials("gateway.example", token=token_of("workload")), WITH_POET
        )
        assert not generates(address, pki.credentials("team.example", token="not-known-to-anyone"))


def test_without_a_certificate_of_the_authority_nobody_connects(
    model_folder: Path, adapter_folder: Path, pki: Pki
) -> None:
    """And without a file of clients, whoever has one may do everything."""
    settings = tiny_settings(model_folder, adapter_folder, security=pki.settings(client_ca=True))
    foreign = issue(trustme.CA(), "team.example")
    with running_server(settings) as server:
        addresses = server.ready.result()
        with Client(addresses.admin_listen, credentials=pki.credentials("team.example")) as admin:
            assert admin.update_adapter("poet", pinned=False).adapter_id == "poet"
        for address in (addresses.listen, addresses.admin_listen):
            assert generates(address, pki.credentials("team.example"), WITH_POET)
            assert not generates(address, pki.credentials())
            assert not generates(address, pki.credentials_of(foreign))
            assert not generates(address, pki.credentials_of(pki.spiffe()))  # it names nobody
            assert not generates(address, Credentials())


def test_clients_and_certificates_are_read_anew(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind the links that Kubernetes swaps; what is malformed changes nothing."""
    folder, pki = tmp_path / "secret", Pki(folder=tmp_path)
    first, second = pki.renew(), pki.renew()
    early = write_clients(tmp_path / "early", a='permissions = ["infer"]').read_bytes()
    late = write_clients(tmp_path / "late", b='permissions = ["infer"]').read_bytes()
    mount(folder, "v1", crt=first.chain, key=first.private_key, clients=early)
    security = {
        "certificate": folder / "crt",
        "private_key": folder / "key",
        "clients": folder / "clients",
        **QUICK,
    }
    with running_server(tiny_settings(model_folder, security=security)) as server:
        address = server.ready.result().listen
        a, b = pki.credentials(token=token_of("a")), pki.credentials(token=token_of("b"))
        with Client(address, credentials=a) as lasting:
            assert lasting.generate_once(SHORT)
            assert shown_certificate(address) == der(first)

            mount(folder, "v2", crt=second.chain, key=first.private_key, clients=b"[[clients")
            wait_until(lambda: caplog.text.count("stay in force") == 2)
            assert shown_certificate(address) == der(first)
            assert generates(address, a)

            mount(folder, "v3", crt=second.chain, key=second.private_key, clients=late)
            wait_until(lambda: shown_certificate(address) == der(second))
            wait_until(lambda: generates(address, b))
            assert not generates(address, a)
            with pytest.raises(UnauthenticatedError):  # also on the connection from before
                lasting.generate_once(SHORT)
    assert "is no TOML" in caplog.text


def test_a_new_authority_takes_effect_for_new_connections(
    model_folder: Path, adapter_folder: Path, pki: Pki, tmp_path: Path
) -> None:
    """Callers of the old one are then kept out, and those of the new one let in."""
    other = trustme.CA()
    old = pki.credentials("team.example")
    new = pki.credentials_of(issue(other, "team.example"))
    settings = tiny_settings(model_folder, security={**pki.settings(client_ca=True), **QUICK})
    with running_server(settings) as server:
        address = server.ready.result().listen

        assert (generates(address, old), generates(address, new)) == (True, False)
        pki.ca_file.write_bytes(other.cert_pem.bytes())
        wait_until(lambda: generates(address, new))
        assert not generates(address, old)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tls.crt", b"none", r"security\.certificate: .*tls\.crt"),
        ("tls.key", b"none", r"security\.private_key: .*tls\.key"),
        ("ca.crt", b"none", r"security\.client_ca: .*ca\.crt"),
        ("tls.crt", None, r"security: .*tls\.crt cannot be read"),
    ],
)
def test_a_server_does_not_start_with_bad_certificates(
    model_folder: Path, pki: Pki, file: str, content: bytes | None, words: str
) -> None:
    """It says which file; it neither goes on without TLS, nor fails at each connection."""
    if content is None:
        (pki.folder / file).unlink()
    else:
        (pki.folder / file).write_bytes(content)

    with (
        pytest.raises(SettingsError, match=words),
        running_server(tiny_settings(model_folder, security=pki.settings(client_ca=True))),
    ):
        pass


@pytest.mark.parametrize(
    ("listen", "is_warned"),
    [("0.0.0.0:0", True), ("[::]:0", True), ("127.0.0.1:0", False), ("localhost:0", False)],
)
def test_tokens_without_tls_are_warned_of_where_others_can_listen(
    model_folder: Path,
    clients_file: Path,
    caplog: pytest.LogCaptureFixture,
    listen: str,
    *,
    is_warned: bool,
) -> None:
    """It may be a gateway's business; or a mistake."""
    settings = tiny_settings(
        model_folder, security={"clients": clients_file}, server={"listen": listen}
    )
    with running_server(settings):
        pass

    warnings = [r for r in caplog.records if "without TLS" in r.getMessage()]
    assert (len(warnings) == 1) is is_warned
    assert all(record.levelno == logging.WARNING for record in warnings)

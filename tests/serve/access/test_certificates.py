"""Checking certificates before they are used."""

import codecs
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from lokr_serve.access.certificates import CertificateFiles
from lokr_serve.errors import SettingsError
from tests.serve.access.certificates import HOST, issue

FILES = CertificateFiles(
    chain=Path("/tls/tls.crt"), private_key=Path("/tls/tls.key"), client_ca=Path("/tls/ca.crt")
)
CA = trustme.CA()
AUTHORITY = CA.cert_pem.bytes()
PAIR = issue(CA, HOST)
OTHER = issue(CA, HOST)
BOM = codecs.BOM_UTF8  # with which gRPC finds no certificate
SPOILT = AUTHORITY[:100] + b"\xff" + AUTHORITY[100:]


def locked(private_key: bytes) -> bytes:
    """Return a key under a password."""
    key = load_pem_private_key(private_key, None)
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )


def test_a_good_pair_is_taken_as_it_is() -> None:
    """What was checked is what is used."""
    certificates = FILES.parse((PAIR.chain, PAIR.private_key, AUTHORITY))

    assert (certificates.chain, certificates.client_ca) == (PAIR.chain, AUTHORITY)
    assert PAIR.private_key.decode() not in repr(certificates)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_comments_may_be_in_any_encoding(encoding: str) -> None:
    """Authorities name who a certificate is of, and in which city, above it; OpenSSL skips that."""
    comment = "# Zürich\n".encode(encoding)
    chain, client_ca = comment + PAIR.chain + comment, comment + AUTHORITY + comment

    certificates = FILES.parse((chain, PAIR.private_key, client_ca))

    assert (certificates.chain, certificates.client_ca) == (chain, client_ca)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ((b"", PAIR.private_key, AUTHORITY), "security.certificate: /tls/tls.crt"),
        ((b"\xff", PAIR.private_key, AUTHORITY), "security.certificate: /tls/tls.crt"),
        ((PAIR.chain[:-50], PAIR.private_key, AUTHORITY), "security.certificate: /tls/tls.crt"),
        ((PAIR.chain, b"", AUTHORITY), "security.private_key: /tls/tls.key"),
        ((PAIR.chain, OTHER.private_key, AUTHORITY), "/tls/tls.key is not the key.*MISMATCH"),
        ((PAIR.chain, PAIR.private_key[:-60], AUTHORITY), "security.private_key: /tls/tls.key"),
        ((PAIR.chain, locked(PAIR.private_key), AUTHORITY), "without a password"),
        ((PAIR.chain, PAIR.private_key, b"none"), "security.client_ca: /tls/ca.crt"),
        ((PAIR.chain, PAIR.private_key, BOM + AUTHORITY), "security.client_ca: /tls/ca.crt"),
        ((BOM + PAIR.chain, PAIR.private_key, AUTHORITY), "security.certificate: /tls/tls.crt"),
        ((PAIR.chain, PAIR.private_key, SPOILT), "security.client_ca: /tls/ca.crt"),
    ],
)
def test_what_openssl_would_not_take_is_refused_by_file(
    contents: tuple[bytes, ...], words: str
) -> None:
    """Grpc itself would end a handshake without a word."""
    with pytest.raises(SettingsError, match=words) as caught:
        FILES.parse(contents)

    assert "PRIVATE KEY" not in str(caught.value)


def test_no_authority_is_needed_for_callers_without_certificates() -> None:
    """TLS alone keeps what is said from others; tokens may say who calls."""
    files = CertificateFiles(chain=FILES.chain, private_key=FILES.private_key)

    assert files.paths == (FILES.chain, FILES.private_key)
    assert files.parse((PAIR.chain, PAIR.private_key)).client_ca is None

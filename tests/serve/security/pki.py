"""Authorities, certificates and clients for tests, written to files."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from lokr_serve.client import Credentials
from tests.serve.access.certificates import HOST, Pair, issue


@dataclass(frozen=True, slots=True, kw_only=True)
class Pki:
    """An authority, and the server's certificate of it, in a folder."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        """Write the files that a server is started with."""
        self.ca_file.write_bytes(self.authority.cert_pem.bytes())
        self.renew()

    @property
    def ca_file(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.crt"

    def renew(self) -> Pair:
        """Give the server a new certificate."""
        pair = issue(self.authority, HOST)
        (self.folder / "tls.crt").write_bytes(pair.chain)
        (self.folder / "tls.key").write_bytes(pair.private_key)
        return pair

    def settings(self, *, client_ca: bool) -> dict[str, object]:
        """Return what goes into the section ``security``."""
        own = {"certificate": self.folder / "tls.crt", "private_key": self.folder / "tls.key"}
        return {**own, "client_ca": self.ca_file} if client_ca else dict(own)

    def credentials(self, *identities: str, token: str | None = None) -> Credentials:
        """Return what a client trusts the server by, and has a certificate of if it is named."""
        pair = issue(self.authority, *identities) if identities else None
        return self.credentials_of(pair, token=token)

    def credentials_of(self, pair: Pair | None, *, token: str | None = None) -> Credentials:
        """Return the same with a certificate that is there."""
        return Credentials(
            token=token,
            root_certificates=self.authority.cert_pem.bytes(),
            certificate_chain=None if pair is None else pair.chain,
            private_key=None if pair is None else pair.private_key,
        )

    def spiffe(self, *uris: str) -> Pair:
        """Return a certificate for URIs alone, which trustme does not make; for nobody without."""
        leaf = issue(self.authority, "workload.example")
        template = x509.load_pem_x509_certificate(leaf.chain)
        signer = load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(template.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(template.not_valid_before_utc)
            .not_valid_after(template.not_valid_after_utc)
        )
        if uris:
            builder = builder.add_extension(names, critical=True)
        certificate = builder.sign(signer, hashes.SHA256())
        return Pair(
            chain=certificate.public_bytes(Encoding.PEM),
            private_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def token_of(name: str) -> str:
    """Return a client's token."""
    return f"the-token-of-{name}-which-nobody-guesses"


def write_clients(file: Path, **clients: str) -> Path:
    """Write a file of clients, each known by its token.

    Args:
        file: Where to.
        clients: Lines of TOML by name, beside name and token.
    """
    file.write_text(
        "".join(
            f'[[clients]]\nname = "{name}"\n'
            f'tokens_sha256 = ["{hashlib.sha256(token_of(name).encode()).hexdigest()}"]\n{lines}\n'
            for name, lines in clients.items()
        )
    )
    return file

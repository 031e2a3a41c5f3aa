"""The server's certificate and key, and the authority of its callers, checked before use."""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from lokr_serve.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What the listeners prove themselves with, and what they want proof from; PEM."""

    chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None  # callers must have a certificate of it


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where they lie."""

    chain: Path
    private_key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that are set."""
        authority = () if self.client_ca is None else (self.client_ca,)
        return (self.chain, self.private_key, *authority)

    def parse(self, contents: tuple[bytes, ...]) -> Certificates:
        """Check contents of ``paths`` as OpenSSL would use them.

        Raises:
            SettingsError: A file is malformed, or the key is not that of the certificate.
        """
        chain, private_key, *authority = contents
        _check_certificates(f"security.certificate: {self.chain}", chain)
        self._check_pair(chain, private_key)
        for client_ca in authority:
            _check_certificates(f"security.client_ca: {self.client_ca}", client_ca)
        return Certificates(
            chain=chain, private_key=private_key, client_ca=authority[0] if authority else None
        )

    def _check_pair(self, chain: bytes, private_key: bytes) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Python reads pairs from files alone; this one lies in memory, so that what is checked
        # is what will be used, even if the files are being written.
        descriptor = os.memfd_create("pair")
        with os.fdopen(descriptor, "wb") as file:
            file.write(chain + b"\n" + private_key)
            file.flush()
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
            except ssl.SSLError as error:
                raise SettingsError(
                    f"security.private_key: {self.private_key} is not the key, without a "
                    f"password, of {self.chain}: {error.reason or 'no PEM'}"
                ) from None


def _check_certificates(subject: str, content: bytes) -> None:
    # Python takes ASCII alone, while files may have comments in any encoding. Other bytes are
    # replaced, not left out: where they matter, as before BEGIN, gRPC refuses the file.
    text = content.decode("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"{subject} holds no certificates in PEM: {error}") from error

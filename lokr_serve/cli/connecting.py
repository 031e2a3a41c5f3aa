"""The flags of every command that calls a server: how it proves itself, and knows the server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from lokr_serve.client import Client, Credentials
from lokr_serve.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ClientCommand:
    """A command that calls a server."""

    token_file: Annotated[
        Path | None, Option(metavar="FILE", help="Holds the bearer token to call with.")
    ] = None
    tls: Annotated[bool, Option("--tls", help="Use TLS; the other flags of TLS imply it.")] = False
    tls_ca: Annotated[
        Path | None, Option(metavar="FILE", help="PEM: whose servers to trust; else the system's.")
    ] = None
    tls_certificate: Annotated[
        Path | None, Option(metavar="FILE", help="PEM: the certificate to call with.")
    ] = None
    tls_key: Annotated[Path | None, Option(metavar="FILE", help="PEM: its private key.")] = None

    def connect(self, server: str, timeout_seconds: float) -> Client:
        """Return a client of a server.

        Raises:
            SettingsError: A file cannot be read, or they do not make whole credentials.
        """
        return Client(server, credentials=self._credentials(), timeout_seconds=timeout_seconds)

    def _credentials(self) -> Credentials:
        token = _read("--token-file", self.token_file)
        try:
            return Credentials(
                token=None if token is None else token.decode("ascii", "replace").strip(),
                tls=self.tls,
                root_certificates=_read("--tls-ca", self.tls_ca),
                certificate_chain=_read("--tls-certificate", self.tls_certificate),
                private_key=_read("--tls-key", self.tls_key),
            )
        except ValueError as error:
            raise SettingsError(f"--token-file, --tls-certificate, --tls-key: {error}") from None


def _read(flag: str, file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag}: {file} cannot be read: {error.strerror}") from error

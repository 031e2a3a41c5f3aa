"""Credentials: how a client proves who it is, and knows that the server is the right one."""

import re
from dataclasses import dataclass, field

import grpc

from lokr_serve.client.requests import Metadata

TOKEN_KEY = "authorization"
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client brings to a server; TLS is used where anything of it is given.

    A token without TLS is readable on its way: for a loopback address, or for a gateway beside
    the client that adds TLS.
    """

    token: str | None = field(default=None, repr=False)  # a bearer token
    tls: bool = False  # with the authorities of the system, unless root_certificates are given
    root_certificates: bytes | None = None  # PEM, of the authority of the server's certificate
    certificate_chain: bytes | None = None  # PEM, of the client's own
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check that they are whole.

        Raises:
            ValueError: The token is no token, or one of certificate and key is missing.
        """
        if self.token is not None and _TOKEN.fullmatch(self.token) is None:
            raise ValueError("token: must be printable ASCII characters, without spaces")
        if (self.certificate_chain is None) != (self.private_key is None):
            raise ValueError("certificate_chain and private_key go together")

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted, and servers have to prove themselves."""
        return self.tls or self.root_certificates is not None or self.certificate_chain is not None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what TLS channels are made with."""
        return grpc.ssl_channel_credentials(
            self.root_certificates, self.private_key, self.certificate_chain
        )

    def added_to(self, metadata: Metadata) -> Metadata:
        """Return a call's metadata with the token."""
        if self.token is None:
            return metadata
        return (*metadata, (TOKEN_KEY, f"Bearer {self.token}"))


NO_CREDENTIALS = Credentials()

"""ClientDirectory: finds out who calls by what the call brings."""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lokr_serve.errors import UnauthenticatedError
from lokr_serve.types import Caller

_HEAD_BYTES = 4  # of a digest, by which those to compare are found


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Somebody who may call, and what proves that it is they."""

    caller: Caller
    token_digests: tuple[bytes, ...]  # SHA-256
    certificates: tuple[str, ...]  # identities


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateIdentities:
    """Whom a verified certificate is made out to."""

    uris: tuple[str, ...] = ()  # such as SPIFFE ids
    names: tuple[str, ...] = ()  # the common name, and the other subject alternative names

    @property
    def main(self) -> str | None:
        """The identity to call its holder by."""
        return next(iter((*self.uris, *self.names)), None)


class ClientDirectory:
    """The clients of a server; never changes."""

    def __init__(self, clients: Iterable[Client]) -> None:
        by_head: dict[bytes, list[tuple[bytes, Caller]]] = defaultdict(list)
        self._by_identity: dict[str, Caller] = {}
        for client in clients:
            for digest in client.token_digests:
                by_head[digest[:_HEAD_BYTES]].append((digest, client.caller))
            for identity in client.certificates:
                self._by_identity[identity] = client.caller
        self._by_head = dict(by_head)

    def by_token(self, token: str) -> Caller:
        """Return the client that a bearer token belongs to.

        Digests are compared, and in constant time, so that the time it takes tells nothing.

        Raises:
            UnauthenticatedError: It is nobody's.
        """
        digest = hashlib.sha256(token.encode()).digest()
        for known, caller in self._by_head.get(digest[:_HEAD_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return caller
        raise UnauthenticatedError("the bearer token is not one that this server knows")

    def by_certificate(self, identities: CertificateIdentities) -> Caller:
        """Return the client that a verified certificate means.

        What looks like a URI is looked for among the certificate's URIs alone: an authority that
        vouches for SPIFFE ids may let anyone choose a common name.

        Raises:
            UnauthenticatedError: It means nobody, or several.
        """
        found = {
            caller.name: caller
            for identity in (*identities.uris, *(n for n in identities.names if "://" not in n))
            if (caller := self._by_identity.get(identity)) is not None
        }
        match list(found.values()):
            case [caller]:
                return caller
            case []:
                raise UnauthenticatedError("the certificate is of no client of this server")
            case _:
                raise UnauthenticatedError(
                    f"the certificate means several clients: {', '.join(sorted(found))}"
                )

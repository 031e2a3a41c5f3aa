"""Who makes a call: by its bearer token, or by the certificate of its connection."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from lokr_serve.access.credentials import Credentials
from lokr_serve.access.directory import CertificateIdentities
from lokr_serve.errors import UnauthenticatedError
from lokr_serve.rpc.interceptors.audit import FailureLog
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.interceptors.interceptor import Call, Context, Scope
from lokr_serve.types import Caller, Permission

HEALTH_SERVICE = "grpc.health.v1.Health"  # probes have no credentials
TOKEN_KEY = "authorization"
_SCHEME = "bearer"


def authentication_scope(credentials: Credentials, failures: FailureLog) -> Scope:
    """Return the scope that finds out who calls, and ends calls of whoever does not say."""

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        if call.service != HEALTH_SERVICE:
            try:
                caller_variable.set(find_caller(credentials, call.context))
            except UnauthenticatedError as error:
                failures.note(call, str(error))
                raise
        yield

    return scope


def find_caller(credentials: Credentials, context: Context) -> Caller:
    """Return who makes a call.

    A token says more than a certificate, which may be that of a gateway; and a wrong one is not
    made good by a certificate.

    Raises:
        UnauthenticatedError: It does not say, or nobody knows it.
    """
    if credentials.clients is None:
        return _holder(_identities(context.auth_context()))
    clients = credentials.clients.value
    token = _bearer_token(context.invocation_metadata() or ())
    if token is not None:
        return clients.by_token(token)
    if credentials.has_client_ca:
        return clients.by_certificate(_identities(context.auth_context()))
    raise UnauthenticatedError(
        f"the call brings no credentials; send a bearer token in the metadata key {TOKEN_KEY}"
    )


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    values = [value for key, value in metadata if key == TOKEN_KEY]
    if not values:
        return None
    if len(values) == 1 and isinstance(values[0], str):
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() == _SCHEME and token:
            return token
    raise UnauthenticatedError(f"the metadata key {TOKEN_KEY} must have one value: Bearer TOKEN")


def _identities(facts: Mapping[str, Iterable[bytes]]) -> CertificateIdentities:
    """Read whom the certificate of a connection is made out to, which TLS has verified."""
    uris = _texts(facts, "peer_uri")
    others = (*_texts(facts, "x509_common_name"), *_texts(facts, "x509_subject_alternative_name"))
    return CertificateIdentities(
        uris=uris, names=tuple(name for name in others if name not in uris)
    )


def _texts(facts: Mapping[str, Iterable[bytes]], key: str) -> tuple[str, ...]:
    return tuple(value.decode(errors="replace") for value in facts.get(key, ()) if value)


def _holder(identities: CertificateIdentities) -> Caller:
    """Return the holder of a certificate as a client that may do everything."""
    if identities.main is None:
        raise UnauthenticatedError("the certificate of the connection names nobody")
    return Caller(name=identities.main, permissions=frozenset(Permission))

"""Guard: what keeps strangers off the listeners: credentials, TLS, and their renewal."""

import asyncio
import ipaddress
import logging

import grpc

from lokr_serve.access.credentials import keep_fresh, read_credentials
from lokr_serve.config import SecuritySettings
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.interceptors.audit import FailureLog
from lokr_serve.rpc.interceptors.authentication import authentication_scope
from lokr_serve.rpc.interceptors.interceptor import Scope
from lokr_serve.rpc.ports import require_free
from lokr_serve.rpc.tls import server_credentials

logger = logging.getLogger(__name__)


class Guard:
    """The credentials of one server, both of its listeners; lives on the event loop.

    Raises:
        SettingsError: A file that the settings name cannot be read, or is malformed.
    """

    def __init__(self, settings: SecuritySettings, metrics: Metrics) -> None:
        self._credentials = read_credentials(settings)
        self._reload_seconds = settings.reload_seconds
        self._metrics = metrics
        self._watch: asyncio.Task[None] | None = None

    def scopes(self) -> tuple[Scope, ...]:
        """Return the scopes that find out who calls; none where everyone may."""
        if not self._credentials.are_wanted:
            return ()
        return (authentication_scope(self._credentials, FailureLog()),)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Bind a server to an address, with TLS if there is a certificate; return the port.

        Raises:
            OSError, RuntimeError: It cannot be bound.
        """
        require_free(address)
        if self._credentials.certificates is not None:
            return server.add_secure_port(
                address, server_credentials(self._credentials.certificates)
            )
        if self._credentials.are_wanted and not _is_loopback(address):
            logger.warning(
                "callers of %s send their tokens without TLS, for all on the way to read; "
                "set security.certificate, or let a gateway do it and none but the gateway in",
                address,
            )
        return server.add_insecure_port(address)

    def start(self) -> None:
        """Begin to look at the files from time to time."""
        self._watch = asyncio.create_task(
            keep_fresh(self._credentials, self._reload_seconds, self._metrics)
        )

    def stop(self) -> None:
        """End that."""
        if self._watch is not None:
            self._watch.cancel()


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

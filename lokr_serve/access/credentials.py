"""Credentials: all that says who may call, read from files and kept up to date."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from lokr_serve.access.certificates import CertificateFiles, Certificates
from lokr_serve.access.clients import parse_clients
from lokr_serve.access.directory import ClientDirectory
from lokr_serve.access.reloading import Look, Reloaded
from lokr_serve.config import SecuritySettings
from lokr_serve.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credentials:
    """What callers are known by; with neither of the first two, everyone may call."""

    clients: Reloaded[ClientDirectory] | None
    has_client_ca: bool  # whether every caller has a certificate that was verified
    certificates: Reloaded[Certificates] | None  # of the listeners

    @property
    def are_wanted(self) -> bool:
        """Whether callers must say who they are."""
        return self.clients is not None or self.has_client_ca


def read_credentials(settings: SecuritySettings) -> Credentials:
    """Read the files that the settings name; blocks on the file system.

    Raises:
        SettingsError: One of them cannot be read, or is malformed.
    """
    return Credentials(
        clients=None if settings.clients is None else _clients(settings.clients, settings),
        has_client_ca=settings.client_ca is not None,
        certificates=_certificates(settings),
    )


def _clients(file: Path, settings: SecuritySettings) -> Reloaded[ClientDirectory]:
    has_client_ca = settings.client_ca is not None

    def parse(contents: tuple[bytes, ...]) -> ClientDirectory:
        return parse_clients(file, contents[0], has_client_ca=has_client_ca)

    return Reloaded("clients", (file,), parse)


def _certificates(settings: SecuritySettings) -> Reloaded[Certificates] | None:
    if settings.certificate is None or settings.private_key is None:
        return None
    files = CertificateFiles(
        chain=settings.certificate,
        private_key=settings.private_key,
        client_ca=settings.client_ca,
    )
    return Reloaded("certificates", files.paths, files.parse)


async def keep_fresh(credentials: Credentials, every_seconds: float, metrics: Metrics) -> None:
    """Look at the files again and again, in a thread, until cancelled."""
    watched = [item for item in (credentials.clients, credentials.certificates) if item is not None]
    while watched:
        await asyncio.sleep(every_seconds)
        for item in watched:
            try:
                look = await asyncio.to_thread(item.look)
            except Exception:  # a bug must not end the watch, and with it every later change
                logger.exception("looking at the %s failed", item.subject)
                look = Look.FAILED
            if look is not Look.SAME:
                metrics.credential_reloads.labels(item.subject, look.value).inc()

"""TLS of the listeners, with certificates that are read anew when they change."""

import grpc

from lokr_serve.access.certificates import Certificates
from lokr_serve.access.reloading import Reloaded


def server_credentials(certificates: Reloaded[Certificates]) -> grpc.ServerCredentials:
    """Return credentials for one listener; connections that are there keep what they have."""
    taken = certificates.value

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates if they are new; grpc asks before each handshake."""
        nonlocal taken
        latest = certificates.value
        if latest is taken:
            return None
        taken = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(taken),
        renewed,  # type: ignore[arg-type] # None is for no change, says grpc
        require_client_authentication=taken.client_ca is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    """Return them in grpc's form, which it takes once only."""
    return grpc.ssl_server_certificate_configuration(
        [(certificates.private_key, certificates.chain)], root_certificates=certificates.client_ca
    )

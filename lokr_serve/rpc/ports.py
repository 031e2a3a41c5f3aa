"""Whether an address can be listened on, asked before grpc writes its own words to the log."""

import socket


def require_free(address: str) -> None:
    """Check that HOST:PORT, or one of the addresses that the name stands for, can be bound.

    Raises:
        OSError: None can, such as one that another program listens on.
    """
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    errors: list[OSError] = []
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as grpc does
                probe.bind(target)
        except OSError as error:
            errors.append(error)
    if len(errors) == len(found):
        raise errors[0]

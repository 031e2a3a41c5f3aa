"""Loopback addresses of one run alone, so that runs side by side may use the same ports."""

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What listens where; the same on every replica, and for every gateway."""

    inference: int
    admin: int
    metrics: int
    gateway_inference: int
    gateway_admin: int
    gateway_probes: int
    gateway_internal: int


class Loopback:
    """Addresses ``127.x.y.*`` that no other process has; all of 127/8 is this machine."""

    def __init__(self) -> None:
        number = os.getpid()
        self._network = f"127.{1 + number // 256 % 250}.{number % 256}"

    def host(self, number: int) -> str:
        """Return one of the addresses, 1 to 250."""
        return f"{self._network}.{number}"

    def free_ports(self) -> Ports:
        """Return ports that nothing listens on, on any address of the machine."""
        with ExitStack() as stack:
            return Ports(**{name: _free_port(stack) for name in Ports.__annotations__})


def _free_port(stack: ExitStack) -> int:
    """Return a port that stays taken until the stack is closed."""
    taken = stack.enter_context(socket.socket())
    taken.bind(("0.0.0.0", 0))
    port: int = taken.getsockname()[1]
    return port

"""Who calls, and what they may do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from lokr_core import is_adapter_id
from lokr_serve.types.requests import Priority


class Permission(Enum):
    """What a client may call."""

    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What one client may take; what is None is the server's setting for every client."""

    max_requests: int | None = None  # at the same time
    rate: float | None = None  # requests a second
    queue_share: float | None = None  # of the places in the queue
    adapter_bytes: int | None = None  # of the adapters that it loaded or uploaded
    max_priority: Priority = Priority.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A client that has said who it is, or nobody in particular."""

    name: str
    permissions: frozenset[Permission]
    adapters: tuple[str, ...] = ("*",)  # ids, or prefixes that end in an asterisk
    sources: tuple[str, ...] | None = None  # likewise, of what it may load; see below
    limits: ClientLimits = ClientLimits()

    def may_use(self, adapter_id: str) -> bool:
        """Whether an adapter is one of those that the client may use, see and change."""
        return _is_one_of(self.adapters, adapter_id)

    def may_load_from(self, source: str) -> bool:
        """Whether a source is one that the client may load adapters from.

        Without a list of its own, a client that may use some adapters only loads what lies in the
        adapter folder under their ids: anything else might be somebody else's.
        """
        if self.sources is not None:
            return _is_one_of(self.sources, source)
        if "*" in self.adapters:
            return True
        name = source.removesuffix(".safetensors")
        return is_adapter_id(name) and self.may_use(name)  # a prefix may match schemes, too


def _is_one_of(patterns: Iterable[str], text: str) -> bool:
    return any(
        text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
        for pattern in patterns
    )


# Whoever calls a server that wants no credentials.
ANONYMOUS = Caller(name="", permissions=frozenset(Permission))

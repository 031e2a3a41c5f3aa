"""Extent: how much there is of everything, so that no request can lack room for its adapter."""

from dataclasses import dataclass

from benchmarks.scope import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How many replicas, adapters and requests there are."""

    num_adapters: int
    num_replicas: int
    room: int  # adapters that one replica holds
    num_callers: int  # each waits for its reply before it asks again
    num_warm: int  # requests that fill the memory
    num_measured: int  # requests after them

    def __post_init__(self) -> None:
        """Check that a replica has room for all that may be in use on it at once.

        Any routing may send all callers to one replica, each for another adapter; what is in use
        is never evicted.

        Raises:
            ValueError: It does not.
        """
        if self.room <= self.num_callers:
            raise ValueError(
                f"a replica with room for {self.room} adapters may refuse one of "
                f"{self.num_callers} callers, who may all use adapters of their own on it; "
                f"give it room for more than {self.num_callers}, or have fewer callers"
            )

    @classmethod
    def of(cls, scope: Scope) -> "Extent":
        """Return what fits a scope."""
        return cls(
            num_adapters=scope.count(10_000, 60),
            num_replicas=scope.count(3, 2),
            room=scope.count(500, 10),
            num_callers=scope.count(12, 4),
            num_warm=scope.count(2000, 30),
            num_measured=scope.count(2000, 60),
        )

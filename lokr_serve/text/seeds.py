"""Counter-based randomness: a draw depends on nothing but its seed and position."""

from hashlib import blake2b
from struct import Struct

_PAIR = Struct("<QQ")


def derive_seed(seed: int, index: int) -> int:
    """Return the seed of the sequence at ``index`` of a request.

    Args:
        seed: The request's seed, an unsigned 64-bit integer.
        index: Which of the request's ``n`` sequences; the first keeps the seed itself, so that
            ``n`` does not change it.
    """
    return seed if index == 0 else _hash(seed, index, b"sequence")


def uniform(seed: int, position: int) -> float:
    """Return the draw of ``seed`` at ``position``: 53 random bits, at least 0 and below 1."""
    return (_hash(seed, position, b"position") >> 11) * 2.0**-53


def _hash(seed: int, counter: int, purpose: bytes) -> int:
    digest = blake2b(_PAIR.pack(seed, counter), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little")

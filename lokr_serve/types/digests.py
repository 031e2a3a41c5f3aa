"""SHA-256 digests, as people write them."""

import re

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


def sha256_digest(text: str) -> str | None:
    """Return the lower-case hex digits of a digest, which may start with ``sha256:``.

    Returns:
        None if it is no digest.
    """
    match = _SHA256.fullmatch(text)
    return None if match is None else match[1].lower()

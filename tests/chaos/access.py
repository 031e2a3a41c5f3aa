"""Access: the clients that the server knows, and what each may take."""

import hashlib
from enum import Enum
from pathlib import Path

from lokr_serve.client import Credentials

Metadata = tuple[tuple[str, str], ...]

UPLOADED_BYTES = 10**9  # that the operator may take; the disk is full long before
_FILE = """
[[clients]]
name = "operator"
tokens_sha256 = ["{operator}"]
permissions = ["infer", "admin"]
adapter_bytes = {uploaded_bytes}

[[clients]]
name = "user"
tokens_sha256 = ["{user}"]
permissions = ["infer"]

[[clients]]
name = "witness"
tokens_sha256 = ["{witness}"]
permissions = ["infer"]

[[clients]]
name = "crowd"
tokens_sha256 = ["{crowd}"]
permissions = ["infer"]
max_requests = 40
queue_share = 0.5
max_priority = "normal"
"""


class Known(Enum):
    """A client that the server knows."""

    OPERATOR = "operator"
    USER = "user"
    WITNESS = "witness"  # behaves, and is in a hurry
    CROWD = "crowd"  # does not behave, and is held to a share

    @property
    def token(self) -> str:
        """What proves that it is this client."""
        return f"the-token-of-the-{self.value}"

    @property
    def credentials(self) -> Credentials:
        """The token as the client library takes it."""
        return Credentials(token=self.token)

    @property
    def metadata(self) -> Metadata:
        """The token as calls bring it."""
        return (("authorization", f"Bearer {self.token}"),)


def write_clients(path: Path) -> None:
    """Write the file of clients."""
    digests = {known.value: hashlib.sha256(known.token.encode()).hexdigest() for known in Known}
    path.write_text(_FILE.format(uploaded_bytes=UPLOADED_BYTES, **digests), encoding="utf-8")

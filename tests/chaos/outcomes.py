"""Outcomes: which ends of a call have an explanation; every other one is a fault."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import grpc

from lokr_serve.client import ClientError
from tests.chaos.server import Life

_NOT_FOUND = "NOT_FOUND/ADAPTER_NOT_FOUND"
_DRAINING = "UNAVAILABLE/ADAPTER_DRAINING"
_NO_ROOM = "RESOURCE_EXHAUSTED/ADAPTER_BUDGET"
_NO_DISK = "RESOURCE_EXHAUSTED/STORAGE_FULL"
QUEUE_FULL = "RESOURCE_EXHAUSTED/QUEUE_FULL"
_LIMIT = "RESOURCE_EXHAUSTED/LIMIT_EXCEEDED"
_UNREACHED = "UNAVAILABLE/SOURCE_UNAVAILABLE"
_CHANGED = "DATA_LOSS/DIGEST_MISMATCH"
_UPLOAD = "INVALID_ARGUMENT/UPLOAD"
_BUSY = "ABORTED/UPLOAD_BUSY"

_GENERATION = (
    *(_NOT_FOUND, _DRAINING, _NO_ROOM, QUEUE_FULL, _UNREACHED, _NO_DISK),
    *("ABORTED/ADAPTER_UNLOADED", "RESOURCE_EXHAUSTED/MERGE_BUDGET"),
    "FAILED_PRECONDITION/ADAPTER_LOAD_FAILED",  # a far one, of which the wrong bytes came
)
_FETCH = (_NO_ROOM, _DRAINING, _UNREACHED, _NO_DISK)
_SENDING = (_NO_ROOM, _DRAINING, _NO_DISK, _BUSY)
_CROWD = (QUEUE_FULL, _LIMIT)

_EXPLAINED: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "stream": _GENERATION,
        "unary": _GENERATION,
        "witness": (QUEUE_FULL,),
        "load": (_NO_ROOM, _DRAINING),
        "unload": (_NOT_FOUND, _DRAINING, "FAILED_PRECONDITION/ADAPTER_BUSY"),
        "unload by force": (_NOT_FOUND,),
        "update": (_NOT_FOUND, *_FETCH, _CHANGED, "FAILED_PRECONDITION/ADAPTER_LOAD_FAILED"),
        "get": (_NOT_FOUND,),
        "fetch": _FETCH,
        "fetch, by digest": (*_FETCH, _CHANGED),
        "upload": _SENDING,
        "upload, cut": _SENDING,
        "upload, wrong digest": (*_SENDING, _CHANGED, _UPLOAD),
        "upload, too long": (*_SENDING, _UPLOAD),
        "half-open upload": (_NO_DISK,),
        "flood": _CROWD,
        "read slowly": _CROWD,
        "oversized": ("RESOURCE_EXHAUSTED",),
        "malformed": ("INVALID_ARGUMENT/INVALID_REQUEST",),
        "unknown method": ("UNIMPLEMENTED/NOT_SERVED",),
        "huge metadata": ("RESOURCE_EXHAUSTED",),
        "bad token": ("UNAUTHENTICATED/UNAUTHENTICATED",),
        "not permitted": ("PERMISSION_DENIED/NOT_PERMITTED",),
    }
)
_OF_AN_END = frozenset(("UNAVAILABLE/SHUTTING_DOWN", "UNAVAILABLE/ENGINE_STOPPED"))
# Without a reason of the server's: grpc itself cancels calls not taken up when a server stops.
_OF_THE_TRANSPORT = frozenset(("UNAVAILABLE", "CANCELLED"))


def status_of(error: ClientError) -> str:
    """Return a failure's code, and the server's word for its reason if there is one."""
    return f"{error.code.name}/{error.reason}" if error.reason else error.code.name


def is_explained(operation: str, error: ClientError, life: Life, *, is_hasty: bool) -> bool:
    """Whether a call may end so: by what it asked for, by its haste, or with its server."""
    status = status_of(error)
    if status in _EXPLAINED.get(operation, ()):
        return True
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return is_hasty
    return life.is_ending and (status in _OF_THE_TRANSPORT or status in _OF_AN_END)

"""What a caller may do: which methods it may call, and which adapters it may name."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lokr_serve.errors import NotPermittedError
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.interceptors.interceptor import UNKNOWN, Call
from lokr_serve.types import Permission

ADAPTER_SERVICE = "lokr_serve.v1.AdapterService"
READING_METHODS = frozenset(("GetAdapter", "ListAdapters"))

_NOTHING: frozenset[Permission] = frozenset()
_ANY = frozenset(Permission)
_ADMIN = frozenset((Permission.ADMIN,))
_INFER = frozenset((Permission.INFER,))


def is_change(call: Call) -> bool:
    """Whether a call changes adapters."""
    return call.service == ADAPTER_SERVICE and call.method not in READING_METHODS


def wanted_permissions(call: Call) -> frozenset[Permission]:
    """Return the permissions of which a caller needs one; a service that is new needs INFER."""
    if call.service == UNKNOWN or call.is_standard:
        return _NOTHING
    if call.service == ADAPTER_SERVICE:
        return _ADMIN if is_change(call) else _ANY
    return _INFER


@asynccontextmanager
async def permission_scope(call: Call) -> AsyncIterator[None]:
    """Refuse calls that the caller has no permission for."""
    caller, wanted = caller_variable.get(), wanted_permissions(call)
    if wanted and not wanted & caller.permissions:
        names = " or ".join(sorted(permission.value for permission in wanted))
        raise NotPermittedError(
            f"{call.method} needs the permission {names}, which client {caller.name!r} lacks"
        )
    yield


@asynccontextmanager
async def reading_scope(call: Call) -> AsyncIterator[None]:
    """Refuse calls that change adapters: they belong to the admin listener."""
    if is_change(call):
        raise NotPermittedError(f"{call.method} is allowed on the admin listener only")
    yield


def require_adapter(adapter_id: str) -> None:
    """Check that the caller may use, see or change an adapter, whether or not it exists.

    Raises:
        NotPermittedError: It may not.
    """
    caller = caller_variable.get()
    if not caller.may_use(adapter_id):
        raise NotPermittedError(f"client {caller.name!r} may not use adapter {adapter_id!r}")


def require_meaning(name: str, resolve: Callable[[str], str]) -> str:
    """Return the id that a name stands for, if the caller may use it as named and as resolved.

    Raises:
        NotPermittedError: It may not. What the name stands for is not told.
    """
    require_adapter(name)
    adapter_id = resolve(name)
    caller = caller_variable.get()
    if not caller.may_use(adapter_id):
        raise NotPermittedError(
            f"client {caller.name!r} may not use the adapter that {name!r} is an alias of"
        )
    return adapter_id


def require_source(source: str) -> None:
    """Check that the caller may load adapters from a source, whether or not it exists.

    Raises:
        NotPermittedError: It may not.
    """
    caller = caller_variable.get()
    if not caller.may_load_from(source):
        raise NotPermittedError(
            f"client {caller.name!r} may not load from {source!r}; "
            "its sources in the file of clients would have to say so"
        )

"""Whose an adapter is, and how many bytes of adapters its owner may have."""

from dataclasses import replace

from lokr_serve.config import LimitSettings
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.types import LoadSpec


def owned(spec: LoadSpec, limits: LimitSettings) -> LoadSpec:
    """Return a request to load an adapter, as one of the caller's."""
    caller = caller_variable.get()
    own = caller.limits.adapter_bytes
    most = limits.client_adapter_bytes if own is None else own
    return replace(spec, owner=caller.name, max_owner_bytes=most)

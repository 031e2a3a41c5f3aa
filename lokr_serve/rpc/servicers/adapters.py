"""AdapterService: converts, and lets the registry do it."""

from collections.abc import AsyncIterator
from dataclasses import replace

from grpc.aio import ServicerContext

from lokr_serve.config import LimitSettings
from lokr_serve.rpc.conversion.adapters import adapter_message, load_spec
from lokr_serve.rpc.conversion.fields import seconds
from lokr_serve.rpc.conversion.pages import page
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.interceptors.audit import audited_id
from lokr_serve.rpc.interceptors.authorization import (
    require_adapter,
    require_meaning,
    require_source,
)
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.servicers.ownership import owned
from lokr_serve.rpc.servicers.upload import receive_upload
from lokr_serve.types import AdapterStatus
from lokr_serve.v1.adapters_pb2 import (
    Adapter,
    GetAdapterRequest,
    GetAdapterResponse,
    ListAdaptersRequest,
    ListAdaptersResponse,
    LoadAdapterRequest,
    LoadAdapterResponse,
    UnloadAdapterRequest,
    UnloadAdapterResponse,
    UpdateAdapterRequest,
    UpdateAdapterResponse,
    UploadAdapterRequest,
    UploadAdapterResponse,
)
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceServicer

DEFAULT_DRAIN_SECONDS = 30.0


class AdapterServicer(AdapterServiceServicer):
    """Serves the registry behind the gate."""

    def __init__(self, gate: Gate, limits: LimitSettings) -> None:
        self._gate = gate
        self._limits = limits

    async def LoadAdapter(
        self,
        request: LoadAdapterRequest,
        context: ServicerContext[LoadAdapterRequest, LoadAdapterResponse],
    ) -> LoadAdapterResponse:
        """Register an adapter, load it, and return it."""
        _require(request.adapter_id)
        require_source(request.source)
        spec = owned(load_spec(request), self._limits)
        status = await self._gate.backend().registry.load(spec)
        return LoadAdapterResponse(adapter=_shown(status))

    async def UploadAdapter(
        self,
        request: AsyncIterator[UploadAdapterRequest],
        context: ServicerContext[UploadAdapterRequest, UploadAdapterResponse],
    ) -> UploadAdapterResponse:
        """Receive an adapter's file, register it, load it, and return it."""
        registry = self._gate.backend().registry
        status = await receive_upload(request, context, registry, self._limits)
        return UploadAdapterResponse(adapter=_shown(status))

    async def UnloadAdapter(
        self,
        request: UnloadAdapterRequest,
        context: ServicerContext[UnloadAdapterRequest, UnloadAdapterResponse],
    ) -> UnloadAdapterResponse:
        """Drain an adapter and remove it."""
        _require(request.adapter_id)
        drain_seconds = (
            seconds(request.drain_timeout)
            if request.HasField("drain_timeout")
            else DEFAULT_DRAIN_SECONDS
        )
        freed_bytes = await self._gate.backend().registry.unload(
            request.adapter_id,
            drain_seconds=drain_seconds,
            force=request.force,
        )
        return UnloadAdapterResponse(freed_bytes=freed_bytes)

    async def GetAdapter(
        self,
        request: GetAdapterRequest,
        context: ServicerContext[GetAdapterRequest, GetAdapterResponse],
    ) -> GetAdapterResponse:
        """Return one adapter."""
        _require(request.adapter_id)
        registry = self._gate.backend().registry
        require_meaning(request.adapter_id, registry.resolve)
        return GetAdapterResponse(adapter=_shown(registry.get(request.adapter_id)))

    async def ListAdapters(
        self,
        request: ListAdaptersRequest,
        context: ServicerContext[ListAdaptersRequest, ListAdaptersResponse],
    ) -> ListAdaptersResponse:
        """Return a page of the registered adapters that the caller may use."""
        registry = self._gate.backend().registry
        found = page(
            registry.ids(prefix=request.filter),
            caller_variable.get().may_use,
            size=request.page_size,
            token=request.page_token,
            prefix=request.filter,
        )
        return ListAdaptersResponse(
            adapters=map(_shown, registry.list(found.ids)), next_page_token=found.next_token
        )

    async def UpdateAdapter(
        self,
        request: UpdateAdapterRequest,
        context: ServicerContext[UpdateAdapterRequest, UpdateAdapterResponse],
    ) -> UpdateAdapterResponse:
        """Change how an adapter is kept."""
        _require(request.adapter_id)
        status = await self._gate.backend().registry.update(
            request.adapter_id,
            pinned=request.pinned if request.HasField("pinned") else None,
            ttl_seconds=seconds(request.ttl) if request.HasField("ttl") else None,
        )
        return UpdateAdapterResponse(adapter=_shown(status))


def _shown(status: AdapterStatus) -> Adapter:
    """Write an adapter as the caller may see it: by the names that it may use."""
    may_use = caller_variable.get().may_use
    return adapter_message(replace(status, aliases=tuple(filter(may_use, status.aliases))))


def _require(adapter_id: str) -> None:
    """Check that the caller may use an adapter, once the audit knows which one it wants.

    Raises:
        NotPermittedError: It may not.
    """
    audited_id.set(adapter_id)
    require_adapter(adapter_id)

"""AdapterService: converts, and lets the registry do it."""

from grpc.aio import ServicerContext

from lokr_serve.errors import NotServedError
from lokr_serve.rpc.adapter_conversion import adapter_message, load_spec
from lokr_serve.rpc.fields import seconds
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.pages import page
from lokr_serve.v1.adapters_pb2 import (
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

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def LoadAdapter(
        self,
        request: LoadAdapterRequest,
        context: ServicerContext[LoadAdapterRequest, LoadAdapterResponse],
    ) -> LoadAdapterResponse:
        """Register an adapter, load it, and return it."""
        spec = load_spec(request)
        status = await self._gate.backend().registry.load(spec)
        return LoadAdapterResponse(adapter=adapter_message(status))

    async def UploadAdapter(
        self,
        request: object,
        context: ServicerContext[UploadAdapterRequest, UploadAdapterResponse],
    ) -> UploadAdapterResponse:
        """Refuse: files come by the adapter folder for now."""
        raise NotServedError(
            "this server takes no uploads; put the file in its adapter folder and call LoadAdapter"
        )

    async def UnloadAdapter(
        self,
        request: UnloadAdapterRequest,
        context: ServicerContext[UnloadAdapterRequest, UnloadAdapterResponse],
    ) -> UnloadAdapterResponse:
        """Drain an adapter and remove it."""
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
        status = self._gate.backend().registry.get(request.adapter_id)
        return GetAdapterResponse(adapter=adapter_message(status))

    async def ListAdapters(
        self,
        request: ListAdaptersRequest,
        context: ServicerContext[ListAdaptersRequest, ListAdaptersResponse],
    ) -> ListAdaptersResponse:
        """Return a page of the registered adapters."""
        found = page(
            self._gate.backend().registry.list(prefix=request.filter),
            size=request.page_size,
            token=request.page_token,
            prefix=request.filter,
        )
        return ListAdaptersResponse(
            adapters=map(adapter_message, found.adapters), next_page_token=found.next_token
        )

    async def UpdateAdapter(
        self,
        request: UpdateAdapterRequest,
        context: ServicerContext[UpdateAdapterRequest, UpdateAdapterResponse],
    ) -> UpdateAdapterResponse:
        """Change how an adapter is kept."""
        status = await self._gate.backend().registry.update(
            request.adapter_id,
            pinned=request.pinned if request.HasField("pinned") else None,
            ttl_seconds=seconds(request.ttl) if request.HasField("ttl") else None,
        )
        return UpdateAdapterResponse(adapter=adapter_message(status))

"""AsyncClient: calls a server from an event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from lokr_serve.client import image_replies, image_requests, replies, requests
from lokr_serve.client.channel import DEFAULT_TIMEOUT_SECONDS, channel_options, deadline
from lokr_serve.client.credentials import NO_CREDENTIALS, Credentials
from lokr_serve.client.errors import client_errors
from lokr_serve.client.metadata import MetadataHook, with_hooks
from lokr_serve.client.results import Completion, GeneratedImages, Health
from lokr_serve.client.sending import Sending, send_async
from lokr_serve.client.uploads import Progress, UploadFile
from lokr_serve.types import (
    AdapterStatus,
    Chunk,
    Finished,
    GenerationRequest,
    ImageEvent,
    ImageRequest,
    ImageStarted,
    LoadSpec,
    Started,
    UploadOptions,
)
from lokr_serve.v1 import adapters_pb2, text_pb2
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from lokr_serve.v1.images_pb2_grpc import ImageServiceStub
from lokr_serve.v1.text_pb2_grpc import TextServiceStub


class AsyncClient:
    """A connection to one server; to be closed or used in an ``async with`` block.

    Every method raises a :class:`ClientError` for what the server, or the way to it, refuses, and
    takes ``timeout_seconds`` in place of the client's own.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials = NO_CREDENTIALS,
        hooks: Sequence[MetadataHook] = (),
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """Connect to HOST:PORT; the first call waits for the connection.

        Args:
            address: Of the server, or of a gateway before it.
            credentials: Who calls, and whom the client trusts.
            hooks: Are each asked, at every call, for metadata to add to its own.
            timeout_seconds: How long a call may take.
        """
        self._timeout_seconds = timeout_seconds
        self._credentials = credentials
        self._hooks = tuple(hooks)
        self._channel = _open(address, credentials)
        self._text = TextServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)
        self._adapters = AdapterServiceStub(self._channel)
        self._health = HealthStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that still run end."""
        await self._channel.close()

    async def generate(
        self, request: GenerationRequest, *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[Started | Chunk | Finished, None]:
        """Stream the events of one request; closing the generator cancels the request."""
        with client_errors():
            call = self._text.Generate(
                requests.generation_message(text_pb2.GenerateRequest, request),
                timeout=self._timeout(timeout_seconds),
                metadata=self._metadata(requests.generation_metadata(request)),
            )
            try:
                async for message in call:
                    yield replies.event(message)
            finally:
                call.cancel()

    async def generate_once(
        self, request: GenerationRequest, *, timeout_seconds: float | None = None
    ) -> Completion:
        """Return the whole reply to one request."""
        message = requests.generation_message(text_pb2.GenerateOnceRequest, request)
        metadata = requests.generation_metadata(request)
        reply = await self._call(self._text.GenerateOnce, message, timeout_seconds, metadata)
        return replies.completion(reply)

    async def generate_image(
        self, request: ImageRequest, *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[ImageStarted | ImageEvent, None]:
        """Stream the events of one request; closing the generator cancels the request.

        Each image comes whole, and checked against its digest.
        """
        reader = image_replies.ImageReader()
        with client_errors():
            call = self._images.GenerateImage(
                image_requests.image_message(request),
                timeout=self._timeout(timeout_seconds),
                metadata=self._metadata(requests.generation_metadata(request)),
            )
            try:
                async for reply in call:
                    for event in reader.read(reply):
                        yield event
            finally:
                call.cancel()

    async def generate_image_once(
        self, request: ImageRequest, *, timeout_seconds: float | None = None
    ) -> GeneratedImages:
        """Return the images of one request, once all of them are there."""
        stream = self.generate_image(request, timeout_seconds=timeout_seconds)
        async with aclosing(stream) as events:
            return image_replies.generated_images([event async for event in events])

    async def load_adapter(
        self, spec: LoadSpec, *, timeout_seconds: float | None = None
    ) -> AdapterStatus:
        """Register an adapter and load it; return it when it is ready."""
        reply = await self._call(
            self._adapters.LoadAdapter, requests.load_message(spec), timeout_seconds
        )
        return replies.adapter_status(reply.adapter)

    async def upload_adapter(
        self,
        adapter_id: str,
        path: str | Path,
        options: UploadOptions | None = None,
        *,
        progress: Progress = lambda sent_bytes, num_bytes: None,
        timeout_seconds: float | None = None,
    ) -> AdapterStatus:
        """Send an adapter's file to the server, and return the adapter when it is ready.

        What breaks off on the way is sent from there on, as long as it gets further.

        Args:
            adapter_id: The id to register it under.
            path: A safetensors file, or a folder with one and PEFT's adapter_config.json.
            options: How it is to be registered; neither pinned nor replacing another, if None.
            progress: Is told how many bytes the server has, and of how many; from any thread.
            timeout_seconds: How long all of it may take.

        Raises:
            AdapterFileError: The file cannot be read.
        """
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        until = monotonic() + seconds
        metadata = requests.request_metadata()
        sending = Sending(
            file=await asyncio.to_thread(UploadFile.of, Path(path)),
            adapter_id=adapter_id,
            options=options or UploadOptions(),
            progress=progress,
            metadata=partial(self._metadata, metadata),
            until=until,
        )
        reply = await send_async(self._adapters.UploadAdapter, sending)
        return replies.adapter_status(reply.adapter)

    async def unload_adapter(
        self,
        adapter_id: str,
        *,
        drain_seconds: float | None = None,
        force: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Remove an adapter once it is free, or by force; return the bytes of memory freed.

        Args:
            adapter_id: The adapter.
            drain_seconds: How long to wait for requests that use it; the server's choice if None.
            force: Whether to end requests that still use it then.
            timeout_seconds: How long the whole call may take.
        """
        message = requests.unload_message(adapter_id, drain_seconds=drain_seconds, force=force)
        reply = await self._call(self._adapters.UnloadAdapter, message, timeout_seconds)
        freed_bytes: int = reply.freed_bytes
        return freed_bytes

    async def get_adapter(
        self, adapter_id: str, *, timeout_seconds: float | None = None
    ) -> AdapterStatus:
        """Return one adapter."""
        message = adapters_pb2.GetAdapterRequest(adapter_id=adapter_id)
        reply = await self._call(self._adapters.GetAdapter, message, timeout_seconds)
        return replies.adapter_status(reply.adapter)

    async def list_adapters(
        self, prefix: str = "", *, timeout_seconds: float | None = None
    ) -> AsyncIterator[AdapterStatus]:
        """Return all adapters whose ids start with ``prefix``, sorted by id, page by page."""
        message = adapters_pb2.ListAdaptersRequest(filter=prefix)
        while True:
            reply = await self._call(self._adapters.ListAdapters, message, timeout_seconds)
            for adapter in reply.adapters:
                yield replies.adapter_status(adapter)
            if not reply.next_page_token:
                return
            message.page_token = reply.next_page_token

    async def update_adapter(
        self,
        adapter_id: str,
        *,
        pinned: bool | None = None,
        ttl_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> AdapterStatus:
        """Change how an adapter is kept; None leaves as it is, 0 seconds never expires."""
        message = requests.update_message(adapter_id, pinned=pinned, ttl_seconds=ttl_seconds)
        reply = await self._call(self._adapters.UpdateAdapter, message, timeout_seconds)
        return replies.adapter_status(reply.adapter)

    async def health(self, service: str = "", *, timeout_seconds: float | None = None) -> Health:
        """Return whether the server, or one of its services, takes requests."""
        message = HealthCheckRequest(service=service)
        return replies.health(await self._call(self._health.Check, message, timeout_seconds))

    def _metadata(self, metadata: requests.Metadata) -> requests.Metadata:
        return self._credentials.added_to(with_hooks(self._hooks, metadata))

    def _timeout(self, timeout_seconds: float | None) -> float | None:
        return deadline(self._timeout_seconds if timeout_seconds is None else timeout_seconds)

    async def _call(
        self,
        method: Callable[..., Any],  # of a generated stub, which has no types
        message: object,
        timeout_seconds: float | None,
        metadata: requests.Metadata | None = None,
    ) -> Any:
        with client_errors():
            return await method(
                message,
                timeout=self._timeout(timeout_seconds),
                metadata=self._metadata(metadata or requests.request_metadata()),
            )


def _open(address: str, credentials: Credentials) -> grpc.aio.Channel:
    options = channel_options()
    if credentials.has_tls:
        return grpc.aio.secure_channel(address, credentials.channel_credentials(), options=options)
    return grpc.aio.insecure_channel(address, options=options)

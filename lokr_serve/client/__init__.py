"""The client library: a blocking and an asyncio client with typed events and errors."""

from lokr_serve.client.asynchronous import AsyncClient
from lokr_serve.client.credentials import Credentials
from lokr_serve.client.errors import (
    AbortedError,
    AlreadyExistsError,
    CallCancelledError,
    ClientError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from lokr_serve.client.metadata import MetadataHook, gateway_model_name
from lokr_serve.client.requests import mix_name
from lokr_serve.client.results import Completion, GeneratedImages, Health
from lokr_serve.client.sync import Client

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "CallCancelledError",
    "Client",
    "ClientError",
    "Completion",
    "Credentials",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "GeneratedImages",
    "Health",
    "InternalError",
    "InvalidArgumentError",
    "MetadataHook",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "gateway_model_name",
    "mix_name",
]

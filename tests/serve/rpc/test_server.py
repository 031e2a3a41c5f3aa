"""What the listeners offer beside our own services."""

import socket
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from lokr_serve.client import ResourceExhaustedError, UnimplementedError
from lokr_serve.client.errors import client_error
from lokr_serve.rpc.server import SERVICES
from lokr_serve.v1.text_pb2 import GenerateOnceRequest
from tests.serve.running import Connection, connected, running_server, tiny_settings


def reflected(address: str) -> set[str]:
    """Return the services that a listener lists."""
    with grpc.insecure_channel(address) as channel:
        stub = ServerReflectionStub(channel)
        (reply,) = stub.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]))
    return {service.name for service in reply.list_services_response.service}


def test_both_listeners_list_their_services(shared_server: Connection) -> None:
    """A person with a generic client can look around."""
    expected = {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

    assert reflected(shared_server.addresses.listen) == expected
    assert reflected(shared_server.addresses.admin_listen) == expected


def test_reflection_and_sizes_can_be_set(model_folder: Path) -> None:
    """A server on a public network may not want to tell, nor to take large messages."""
    settings = tiny_settings(model_folder, server={"reflection": False, "max_receive_bytes": 1000})
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        with pytest.raises(grpc.RpcError) as reflection:
            reflected(connection.addresses.listen)
        with pytest.raises(grpc.RpcError) as large:
            connection.text.GenerateOnce(GenerateOnceRequest(text="x" * 2000))

    assert isinstance(client_error(reflection.value), UnimplementedError)
    assert isinstance(client_error(large.value), ResourceExhaustedError)


def test_a_bound_port_takes_no_second_server(shared_server: Connection) -> None:
    """By default grpc would share it, and split the requests."""
    host, _, port = shared_server.addresses.listen.rpartition(":")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))

"""Every method of the services that a server may have, from their descriptors."""

from dataclasses import dataclass

from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from lokr_serve.rpc.server import SERVICES

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method."""

    service: str
    name: str

    @property
    def path(self) -> str:
        """As it is called."""
        return f"/{self.service}/{self.name}"


def all_methods() -> tuple[Method, ...]:
    """Return all methods, those for health and reflection included."""
    pool = descriptor_pool.Default()
    return tuple(
        Method(service=service, name=method.name)
        for service in (*SERVICES, HEALTH, reflection.SERVICE_NAME)
        for method in pool.FindServiceByName(service).methods
    )


GUARDED = tuple(method.path for method in all_methods() if method.service != HEALTH)
OPEN = tuple(method.path for method in all_methods() if method.service == HEALTH)
UNKNOWN = (
    "/lokr_serve.v1.TextService/Nothing",
    "/lokr_serve.v1.AdapterService/",
    "/nobody.Knows/This",
    "/grpc.health.v1.Health/Nothing",
    "/a/b/c/d",
)

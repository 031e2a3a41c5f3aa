"""Routing: the ways that are compared, each as a change to the gateway's own configuration."""

import json
from enum import Enum
from typing import Any

import yaml

DESTINATION_KEY = "x-gateway-destination-endpoint"  # where an endpoint picker says who it picked
CLUSTER = "inference"


class Routing(Enum):
    """How a request comes to a replica; the first is what the others are held against."""

    ROUND_ROBIN = "round robin"
    HASH = "hash (Maglev)"
    BOUNDED = "bounded hash (Maglev)"
    BOUNDED_RING = "bounded hash (ring)"
    PICKED = "residency-aware"


SHIPPED = Routing.BOUNDED  # what deploy/gateway/envoy.yaml has


def configuration(routing: Routing, shipped: str) -> str:
    """Return Envoy's configuration for a way of routing.

    Args:
        routing: The way.
        shipped: The configuration in ``deploy/gateway``, for this run's addresses.
    """
    tree = yaml.safe_load(shipped)
    clusters = tree["static_resources"]["clusters"]
    (index,) = (i for i, cluster in enumerate(clusters) if cluster["name"] == CLUSTER)
    clusters[index] = _changed(routing, clusters[index])
    return json.dumps(tree)


def _changed(routing: Routing, cluster: dict[str, Any]) -> dict[str, Any]:
    common = dict(cluster["common_lb_config"])
    bound = common.pop("consistent_hashing_lb_config")
    match routing:
        case Routing.ROUND_ROBIN:
            return {**cluster, "lb_policy": "ROUND_ROBIN", "common_lb_config": common}
        case Routing.HASH:
            return {**cluster, "lb_policy": "MAGLEV", "common_lb_config": common}
        case Routing.BOUNDED:
            return cluster
        case Routing.BOUNDED_RING:
            common["consistent_hashing_lb_config"] = bound
            return {**cluster, "lb_policy": "RING_HASH", "common_lb_config": common}
        case Routing.PICKED:
            return {
                "name": CLUSTER,
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": cluster["connect_timeout"],
                "original_dst_lb_config": {
                    "use_http_header": True,
                    "http_header_name": DESTINATION_KEY,
                },
                "circuit_breakers": cluster["circuit_breakers"],
                "typed_extension_protocol_options": cluster["typed_extension_protocol_options"],
            }

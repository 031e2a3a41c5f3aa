"""Affinity: which replica each adapter's requests reach through a gateway."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from lokr_serve.client import Client, UnavailableError
from tests.gateways.load import request
from tests.gateways.programs import Gateway
from tests.gateways.replicas import Fleet
from tests.gateways.stage import ADAPTER_IDS

SETTLE_SECONDS = 30.0


def placement(
    gateway: Gateway, fleet: Fleet, adapter_ids: Sequence[str] = ADAPTER_IDS
) -> Mapping[str, str]:
    """Send one request for each adapter, and return the host that each reached.

    Nobody else may ask for these adapters meanwhile.
    """
    before = fleet.requests_by_adapter()
    with Client(gateway.address, timeout_seconds=30) as client:
        for adapter_id in adapter_ids:
            client.generate_once(request(adapter_id, max_tokens=1))
    return where(before, fleet, adapter_ids)


def where(
    before: Mapping[str, Mapping[str, int]], fleet: Fleet, adapter_ids: Sequence[str]
) -> Mapping[str, str]:
    """Return the host that got a request for each adapter since ``before``."""
    after = fleet.requests_by_adapter()
    return {
        adapter_id: host
        for host, counts in after.items()
        for adapter_id in adapter_ids
        if counts[adapter_id] > before[host][adapter_id]
    }


def wait_settled(gateway: Gateway, fleet: Fleet) -> None:
    """Wait until every replica gets requests, and each adapter's the same one twice."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last: Mapping[str, str] = {}
    while time.monotonic() < deadline:
        with suppress(UnavailableError):
            now = placement(gateway, fleet)
            if now == last and set(now.values()) == set(fleet.hosts):
                return
            last = now
    raise TimeoutError(f"{gateway.kind.value} does not keep to the replicas: {last}")

"""Where calls go through each gateway, and that nothing of them is lost or held back."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lokr_serve.client import (
    AbortedError,
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from lokr_serve.types import (
    AdapterState,
    Chunk,
    GenerationRequest,
    LoadSpec,
    TextPrompt,
    TokenPrompt,
)
from tests.gateways.affinity import placement
from tests.gateways.load import request
from tests.gateways.programs import Gateway, Kind
from tests.gateways.replicas import Fleet, Replica
from tests.gateways.stage import ADAPTER_IDS, Stage
from tests.tiny import peft_lora, tiny_llama

pytestmark = pytest.mark.xdist_group("gateways")  # replicas are costly: one worker has them

WAIT_SECONDS = 20.0
PAUSE_SECONDS = 0.02  # between two looks at another process
LONG_TOKENS = 7000
MIB = 1024 * 1024


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(PAUSE_SECONDS)


def running(fleet: Fleet) -> int:
    """Return how many sequences all replicas generate now."""
    return int(sum(replica.count("lokr_serve_requests_running") for replica in fleet.replicas))


def num_ended(fleet: Fleet, code: str) -> int:
    """Return how many streams the replicas saw end with a code."""
    labels = {"grpc_method": "Generate", "grpc_code": code}
    counts = [r.count("grpc_server_handled_total", **labels) for r in fleet.replicas]
    return int(sum(counts))


def test_requests_for_one_adapter_reach_one_replica(gateway: Gateway, fleet: Fleet) -> None:
    """Each replica then needs memory for its share of the adapters alone."""
    first = placement(gateway, fleet)
    second = placement(gateway, fleet)

    assert first == second
    assert set(first) == set(ADAPTER_IDS)
    assert set(Counter(first.values())) == set(fleet.hosts)
    assert max(Counter(first.values()).values()) <= 0.75 * len(ADAPTER_IDS)


def test_requests_for_the_base_model_are_spread(gateway: Gateway, fleet: Fleet) -> None:
    """An absent header must not be a key like another, or one replica gets all of them."""
    labels = {"grpc_method": "GenerateOnce", "grpc_code": "OK"}
    before = [r.count("grpc_server_handled_total", **labels) for r in fleet.replicas]
    with Client(gateway.address, timeout_seconds=30) as client:
        for _ in range(30):
            client.generate_once(request(None, max_tokens=1))
    after = [r.count("grpc_server_handled_total", **labels) for r in fleet.replicas]

    gained = [b - a for a, b in zip(before, after, strict=True)]
    assert sum(gained) == 30
    assert min(gained) >= 2


def test_events_arrive_while_the_replica_still_generates(gateway: Gateway, fleet: Fleet) -> None:
    """A gateway that buffers would make a stream no better than one late reply."""
    with Client(gateway.address, timeout_seconds=60) as client:
        events = client.generate(request(ADAPTER_IDS[0], LONG_TOKENS))
        next(events)
        chunk = next(events)
        wait_until(lambda: running(fleet) == 1)
        num_tokens, ends = 0, []
        for event in events:
            num_tokens += len(event.token_ids) if isinstance(event, Chunk) else 0
            ends.append(time.monotonic())
            if num_tokens > 300:
                break
        is_still_running = running(fleet) == 1
        events.close()

    assert isinstance(chunk, Chunk)
    assert is_still_running
    gaps = [b - a for a, b in itertools.pairwise(ends)]
    assert max(gaps) < 0.5 * (ends[-1] - ends[0])  # spread over the time, not in one burst
    wait_until(lambda: running(fleet) == 0)


def test_a_cancelled_stream_ends_at_the_replica(gateway: Gateway, fleet: Fleet) -> None:
    """Rows that nobody reads any more must be free for others."""
    before = num_ended(fleet, "Canceled")
    with Client(gateway.address, timeout_seconds=60) as client:
        events = client.generate(request(ADAPTER_IDS[1], LONG_TOKENS))
        next(events)
        wait_until(lambda: running(fleet) == 1)
        events.close()

        wait_until(lambda: running(fleet) == 0)
        wait_until(lambda: num_ended(fleet, "Canceled") == before + 1)


def test_a_deadline_holds_through_the_gateway(gateway: Gateway, fleet: Fleet) -> None:
    """The replica must know it, too, or it works on for a client that has gone."""
    began = time.monotonic()
    with Client(gateway.address) as client:
        events = client.generate(request(ADAPTER_IDS[2], LONG_TOKENS), timeout_seconds=0.6)
        with pytest.raises(DeadlineExceededError):
            list(events)

    assert 0.5 < time.monotonic() - began < 5
    wait_until(lambda: running(fleet) == 0)


def test_errors_come_with_their_details(gateway: Gateway) -> None:
    """Statuses without a message travel in the head of a reply, which some gateways break."""
    with Client(gateway.address, timeout_seconds=30) as client:
        with pytest.raises(NotFoundError) as unknown:
            client.generate_once(request("nobody", max_tokens=1))
        with pytest.raises(NotFoundError) as unknown_stream:
            list(client.generate(request("nobody", max_tokens=1)))
        with pytest.raises(InvalidArgumentError) as wrong:
            client.generate_once(GenerationRequest(prompt=TokenPrompt(ids=(10**6,))))

    assert unknown.value.reason == unknown_stream.value.reason == "ADAPTER_NOT_FOUND"
    assert unknown.value.metadata["adapter_id"] == "nobody"
    assert wrong.value.field == "token_ids.ids[0]"


def test_an_error_in_the_middle_of_a_stream_comes_with_its_details(
    gateway: Gateway, fleet: Fleet
) -> None:
    """It comes after events, in trailers."""
    adapter_id = ADAPTER_IDS[3]
    host = placement(gateway, fleet, [adapter_id])[adapter_id]
    (replica,) = (replica for replica in fleet.replicas if replica.host == host)
    with Client(gateway.address) as client, Client(replica.admin_address) as admin:
        events = client.generate(request(adapter_id, LONG_TOKENS))
        next(events)
        admin.unload_adapter(adapter_id, drain_seconds=0, force=True)
        with pytest.raises(AbortedError) as ended:
            list(events)
        admin.load_adapter(LoadSpec(adapter_id=adapter_id, source=adapter_id))

    assert ended.value.reason == "ADAPTER_UNLOADED"


def test_each_call_is_logged_with_its_status_and_mix(gateway: Gateway) -> None:
    """HTTP would call all of them 200; and request ids find the same call at the replica."""
    request_id = f"logged-{gateway.kind.value}"
    wanted = replace(request("nobody", max_tokens=1), request_id=request_id)
    with Client(gateway.address, timeout_seconds=30) as client, pytest.raises(NotFoundError):
        client.generate_once(wanted)

    wait_until(lambda: any(call["request_id"] == request_id for call in gateway.calls()))
    (call,) = (call for call in gateway.calls() if call["request_id"] == request_id)
    assert call["grpc_status"] == ("NotFound" if gateway.kind is Kind.ENVOY else "5")
    assert call["method"] == "/lokr_serve.v1.TextService/GenerateOnce"
    assert call["mix"] == "nobody"
    assert call["replica"]


def test_a_large_request_passes_whole(gateway: Gateway) -> None:
    """It is for the replica to say what is too long, and the gateway's limit would not tell."""
    prompt = TextPrompt(text="x" * (8 * MIB))
    with (
        Client(gateway.address, timeout_seconds=60) as client,
        pytest.raises(InvalidArgumentError) as refused,
    ):
        client.generate_once(GenerationRequest(prompt=prompt))

    assert refused.value.field == "text"


@pytest.fixture(scope="module")
def large_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of more than 32 MiB for the tiny model: its rank is high beyond reason."""
    folder = peft_lora(tiny_llama, tmp_path_factory.mktemp("large") / "adapter", r=6000)
    assert (folder / "adapter_model.safetensors").stat().st_size > 32 * MIB
    return folder


def test_a_large_upload_passes_whole(gateway: Gateway, fleet: Fleet, large_adapter: Path) -> None:
    """Adapters come as one call, far beyond the sizes that gateways take by default."""
    adapter_id = f"large-through-{gateway.kind.value}"
    with Client(gateway.admin_address, timeout_seconds=60) as client:
        status = client.upload_adapter(adapter_id, large_adapter)

    assert status.state is AdapterState.READY
    assert status.device_bytes > 32 * MIB
    assert sum(_unload(replica, adapter_id) for replica in fleet.replicas) == 1


def _unload(replica: Replica, adapter_id: str) -> bool:
    """Unload an adapter where it is, and tell whether it was there."""
    with Client(replica.admin_address, timeout_seconds=30) as admin:
        is_there = any(status.adapter_id == adapter_id for status in admin.list_adapters())
        if is_there:
            admin.unload_adapter(adapter_id)
        return is_there


def test_no_replica_left_is_unavailable(gateway: Gateway, stage: Stage) -> None:
    """Clients try again after that code, and after no other one that gateways make up."""
    kind = gateway.kind
    nobody = [stage.loopback.host(200)]
    number = 10 + list(Kind).index(kind)
    with (
        stage.gateway(kind, number, nobody) as lonely,
        Client(lonely.address, timeout_seconds=30) as client,
        pytest.raises(UnavailableError) as refused,
    ):
        client.generate_once(request(ADAPTER_IDS[0], max_tokens=1))

    assert refused.value.reason == ""

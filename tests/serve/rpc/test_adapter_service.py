"""The life of adapters, through the wire."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.client import (
    AlreadyExistsError,
    ClientError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from lokr_serve.client.errors import client_error
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterStatus,
    AdapterWeight,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    Started,
    TextPrompt,
)
from lokr_serve.v1.adapters_pb2 import ListAdaptersRequest, UploadAdapterRequest
from tests.serve.running import Connection, connected, running_server, tiny_settings

LONG = SamplingParams(max_tokens=8000, ignore_eos=True)


@pytest.fixture
def store(adapter_folder: Path, tmp_path: Path) -> Path:
    """An adapter folder of this test's own."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "store"))


@pytest.fixture
def server(model_folder: Path, store: Path) -> Iterator[Connection]:
    """A server of this test's own."""
    with (
        running_server(tiny_settings(model_folder, store)) as running,
        connected(running.ready.result()) as connection,
    ):
        yield connection


def stream_with(adapter_id: str) -> GenerationRequest:
    """Return a request that uses an adapter for long."""
    return GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=(AdapterWeight(adapter_id=adapter_id),),
        sampling=LONG,
    )


def test_the_adapter_folder_is_registered_at_start(shared_server: Connection) -> None:
    """What lies there can be used without a call."""
    adapters = list(shared_server.admin.list_adapters())

    assert {"lyco", "pirate", "plain", "poet"} <= {adapter.adapter_id for adapter in adapters}
    assert [a.adapter_id for a in adapters] == sorted(a.adapter_id for a in adapters)


def test_lists_come_in_pages_of_a_prefix(shared_server: Connection) -> None:
    """A store of thousands does not fit one message."""
    stub = shared_server.adapters
    first = stub.ListAdapters(ListAdaptersRequest(page_size=1, filter="p"))
    second = stub.ListAdapters(
        ListAdaptersRequest(page_size=1, filter="p", page_token=first.next_page_token)
    )

    assert [a.adapter_id for a in (*first.adapters, *second.adapters)] == ["pirate", "plain"]
    assert {a.adapter_id for a in shared_server.admin.list_adapters("po")} == {"poet"}


def test_a_page_costs_what_it_shows(
    shared_server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To describe thousands for a page of few would hold up every stream for as long."""
    described: list[str] = []
    describe = Catalogue.describe

    def note(self: Catalogue, adapter_id: str, *, aliases: Sequence[str]) -> AdapterStatus:
        described.append(adapter_id)
        return describe(self, adapter_id, aliases=aliases)

    monkeypatch.setattr(Catalogue, "describe", note)
    shared_server.adapters.ListAdapters(ListAdaptersRequest(page_size=1, filter="p"))

    assert described == ["pirate"]


def test_a_loaded_adapter_tells_what_it_is(server: Connection) -> None:
    """An operator sees format, algorithm, bytes and where the scale came from."""
    adapter = server.admin.load_adapter(LoadSpec(adapter_id="new", source="poet"))

    assert adapter.state is AdapterState.READY
    assert (adapter.format, tuple(adapter.algorithms)) == ("peft", ("lokr",))
    assert adapter.device_bytes > 0
    assert len(adapter.version) == 16
    assert sum(scale.num_modules for scale in adapter.scales) == adapter.num_modules


def test_loading_the_same_again_changes_nothing(server: Connection) -> None:
    """Start scripts may run twice."""
    spec = LoadSpec(adapter_id="new", source="poet")

    assert server.admin.load_adapter(spec).version == server.admin.load_adapter(spec).version


def test_other_content_is_refused_unless_it_replaces(server: Connection) -> None:
    """Nobody's adapter changes under its users by accident."""
    first = server.admin.load_adapter(LoadSpec(adapter_id="new", source="poet"))

    with pytest.raises(AlreadyExistsError) as caught:
        server.admin.load_adapter(LoadSpec(adapter_id="new", source="pirate"))
    assert caught.value.reason == "ADAPTER_EXISTS"
    assert "replace" in str(caught.value)

    second = server.admin.load_adapter(LoadSpec(adapter_id="new", source="pirate", replace=True))
    assert second.version != first.version


def test_a_replaced_adapter_serves_running_requests_to_their_end(server: Connection) -> None:
    """A stream that started with one version must not end with another."""
    server.admin.load_adapter(LoadSpec(adapter_id="new", source="poet"))
    stream = server.client.generate(stream_with("new"))
    started = next(stream)
    server.admin.load_adapter(LoadSpec(adapter_id="new", source="pirate", replace=True))
    after = server.client.generate(stream_with("new"))
    restarted = next(after)

    assert isinstance(started, Started)
    assert isinstance(restarted, Started)
    assert started.adapters[0].version != restarted.adapters[0].version
    assert next(stream) is not None
    stream.close()
    after.close()


def test_an_adapter_in_use_is_not_unloaded(server: Connection) -> None:
    """Without force a stream is worth more than the room; the adapter serves again."""
    stream = server.client.generate(stream_with("poet"))
    next(stream)

    with pytest.raises(FailedPreconditionError) as caught:
        server.admin.unload_adapter("poet", drain_seconds=0.05)
    assert caught.value.reason == "ADAPTER_BUSY"
    assert "force" in str(caught.value)
    assert next(stream) is not None
    stream.close()


def test_unloading_by_force_ends_the_streams_that_use_it(server: Connection) -> None:
    """They end with a status that says so, others go on, and the adapter is gone."""
    stream, other = (server.client.generate(stream_with(id_)) for id_ in ("poet", "pirate"))
    next(stream)
    next(other)

    assert server.admin.unload_adapter("poet", drain_seconds=0.05, force=True) > 0
    with pytest.raises(ClientError) as caught:
        list(stream)
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.reason == "ADAPTER_UNLOADED"
    with pytest.raises(NotFoundError):
        next(server.client.generate(stream_with("poet")))
    assert next(other) is not None
    other.close()


def test_a_pin_and_a_time_to_live_can_be_changed(server: Connection) -> None:
    """What is unset stays as it was."""
    server.admin.load_adapter(LoadSpec(adapter_id="new", source="poet"))

    assert server.admin.update_adapter("new", pinned=True).pinned
    assert server.admin.update_adapter("new", ttl_seconds=100).pinned
    assert not server.admin.update_adapter("new", pinned=False).pinned


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (LoadSpec(adapter_id="a//b", source="poet"), "adapter_id"),
        (LoadSpec(adapter_id="a", source=""), "source"),
        (LoadSpec(adapter_id="a", source="../poet"), "source"),
        (LoadSpec(adapter_id="a", source="/etc/passwd"), "source"),
        (LoadSpec(adapter_id="a", source="nowhere"), "source"),
        (LoadSpec(adapter_id="a", source="outside"), "source"),
        (LoadSpec(adapter_id="a", source="poet", ttl_seconds=-1), "ttl"),
        (LoadSpec(adapter_id="a", source="poet", digest="12"), "digest"),
        (LoadSpec(adapter_id="a", source="poet", overrides=AdapterOverrides(rank=0)), "rank"),
    ],
)
def test_a_load_that_can_never_be_right_is_refused_by_field(
    server: Connection, store: Path, spec: LoadSpec, field: str
) -> None:
    """A path outside the store, also by a link, must never be opened."""
    (store / "outside").symlink_to(store.parent.parent)

    with pytest.raises(InvalidArgumentError) as caught:
        server.admin.load_adapter(spec)
    assert caught.value.field == field


def test_a_hub_folder_is_read_as_it_lies(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    """What was downloaded by Hugging Face's tools is served without a network."""
    repository, commit = tmp_path / "hub" / "models--team--poet", "ab" * 20
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    for path in (adapter_folder / "poet").glob("adapter_*"):
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    settings = tiny_settings(model_folder, adapter_folder, adapters={"hub": tmp_path / "hub"})
    with running_server(settings) as running, connected(running.ready.result()) as server:
        spec = LoadSpec(adapter_id="hub", source="hf://team/poet")
        from_hub = server.admin.load_adapter(spec)
        near = server.admin.load_adapter(LoadSpec(adapter_id="near", source="poet"))
        server.admin.unload_adapter("hub")

    assert (from_hub.version, from_hub.source) == (near.version, "hf://team/poet")
    assert (snapshot / "adapter_model.safetensors").exists()


def test_errors_of_files_name_the_source_and_no_path_of_the_server(
    server: Connection, store: Path
) -> None:
    """Where the files lie is nobody's business but the operator's."""
    (store / "broken.safetensors").write_bytes(b"not tensors")

    with pytest.raises(FailedPreconditionError, match=r"broken\.safetensors: not a") as caught:
        server.admin.load_adapter(LoadSpec(adapter_id="a", source="broken.safetensors"))

    assert str(store) not in str(caught.value)


def test_a_file_of_another_digest_is_refused(server: Connection) -> None:
    """A file that changed on its way must not be served."""
    with pytest.raises(DataLossError) as caught:
        server.admin.load_adapter(LoadSpec(adapter_id="a", source="poet", digest="ab" * 32))

    assert caught.value.reason == "DIGEST_MISMATCH"


@pytest.mark.parametrize("method", ["load", "unload", "update"])
def test_changes_are_refused_on_the_inference_listener(
    shared_server: Connection, method: str
) -> None:
    """A gateway may pass inference through without handing out the store."""
    client = shared_server.client
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: client.load_adapter(LoadSpec(adapter_id="a", source="poet")),
        "unload": lambda: client.unload_adapter("poet"),
        "update": lambda: client.update_adapter("poet", pinned=True),
    }

    with pytest.raises(PermissionDeniedError, match="admin listener"):
        calls[method]()


def test_reading_is_allowed_on_both_listeners(shared_server: Connection) -> None:
    """Routers look at what is there before they send a request."""
    client, admin = shared_server.client, shared_server.admin

    assert client.get_adapter("poet").source == admin.get_adapter("poet").source
    assert list(client.list_adapters("po")) == list(admin.list_adapters("po"))


def test_uploads_are_refused_with_the_way_that_works(shared_server: Connection) -> None:
    """A server without a folder for them says which setting it lacks, before it reads a byte."""
    with pytest.raises(grpc.RpcError) as caught:
        shared_server.adapters.UploadAdapter(iter([UploadAdapterRequest(chunk=b"x")]))
    error = client_error(caught.value)

    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED")
    assert "adapters.uploads" in str(error)

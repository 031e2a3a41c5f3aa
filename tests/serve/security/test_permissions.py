"""What callers that are known may call, and which adapters they may name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from lokr_serve.app import Addresses
from lokr_serve.client import (
    Client,
    ClientError,
    Credentials,
    NotFoundError,
    PermissionDeniedError,
)
from lokr_serve.types import (
    AdapterWeight,
    GenerationRequest,
    ImageRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
)
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadHeader
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.calling import bearer, channel_to, code_of
from tests.serve.security.methods import GUARDED
from tests.serve.security.pki import token_of

DENIED = grpc.StatusCode.PERMISSION_DENIED
NO_MESSAGE = b"\xff"  # what is let in ends as INVALID_ARGUMENT, and changes nothing

READING = {"GetAdapter", "ListAdapters"}
CHANGING = {"LoadAdapter", "UnloadAdapter", "UpdateAdapter", "UploadAdapter"}
INFERRING = {"Generate", "GenerateOnce", "GenerateImage"}
MAY = {
    ("reader", "listen"): READING | INFERRING,
    ("reader", "admin_listen"): READING | INFERRING,
    ("keeper", "listen"): READING,
    ("keeper", "admin_listen"): READING | CHANGING,
    ("everything", "listen"): READING | INFERRING,
    ("everything", "admin_listen"): READING | INFERRING | CHANGING,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Caller:
    """A client of the file, on both listeners."""

    client: Client
    admin: Client


@pytest.fixture
def poet_only(guarded: Addresses) -> Iterator[Caller]:
    """A client that may use the adapter ``poet``, and what is under ``poets/``."""
    credentials = Credentials(token=token_of("poet-only"))
    with (
        Client(guarded.listen, credentials=credentials) as client,
        Client(guarded.admin_listen, credentials=credentials) as admin,
    ):
        yield Caller(client=client, admin=admin)


def request_with(*adapter_ids: str) -> GenerationRequest:
    """Return a short request for text."""
    return GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=tuple(AdapterWeight(adapter_id=adapter_id) for adapter_id in adapter_ids),
        sampling=SamplingParams(max_tokens=1),
    )


@pytest.mark.parametrize(("name", "listener"), list(MAY))
def test_each_permission_opens_its_methods_and_no_others(
    guarded: Addresses, name: str, listener: str
) -> None:
    """Changes need the permission and the admin listener, both."""
    address = guarded.listen if listener == "listen" else guarded.admin_listen
    ours = [path for path in GUARDED if path.startswith("/lokr_serve.")]
    with channel_to(address) as channel:
        codes = {path: code_of(channel, path, bearer(name), [NO_MESSAGE]) for path in ours}

    let_in = {path.rpartition("/")[2] for path, code in codes.items() if code is not DENIED}
    assert let_in == MAY[name, listener]


def test_a_refusal_names_the_permission_that_is_missing(guarded: Addresses) -> None:
    """Whoever keeps the file of clients sees what to add."""
    credentials = Credentials(token=token_of("reader"))
    with (
        Client(guarded.admin_listen, credentials=credentials) as admin,
        pytest.raises(PermissionDeniedError, match=r"needs the permission admin.*'reader'"),
    ):
        admin.unload_adapter("poet")


def test_an_adapter_of_ones_own_can_be_used(poet_only: Caller) -> None:
    """Alone, and so can the base model."""
    assert poet_only.client.generate_once(request_with("poet")).started.mix_name == "poet"
    assert poet_only.client.generate_once(request_with()).started.mix_name == ""


@pytest.mark.parametrize("adapter_ids", [("pirate",), ("poet", "pirate"), ("nobody",), ("p",)])
def test_a_mix_with_anothers_adapter_is_refused(
    poet_only: Caller, adapter_ids: tuple[str, ...]
) -> None:
    """Whether the adapter exists or not: that is not the caller's to know."""
    with pytest.raises(PermissionDeniedError) as caught:
        poet_only.client.generate_once(request_with(*adapter_ids))

    text = f"client 'poet-only' may not use adapter {adapter_ids[-1]!r}"
    assert str(caught.value) == text
    assert caught.value.reason == "NOT_PERMITTED"


@pytest.mark.parametrize("adapter_id", ["pirate", "nobody", "poet/x", "../poet", ""])
@pytest.mark.parametrize("method", ["get", "load", "update", "unload", "upload"])
def test_anothers_adapter_cannot_be_seen_or_changed(
    guarded: Addresses, poet_only: Caller, method: str, adapter_id: str
) -> None:
    """By none of the calls that name one."""
    admin = poet_only.admin
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: admin.get_adapter(adapter_id),
        "load": lambda: admin.load_adapter(LoadSpec(adapter_id=adapter_id, source="poet")),
        "update": lambda: admin.update_adapter(adapter_id, pinned=True),
        "unload": lambda: admin.unload_adapter(adapter_id),
    }
    if method == "upload":
        frame = UploadAdapterRequest(header=UploadHeader(adapter_id=adapter_id, size_bytes=1))
        path = "/lokr_serve.v1.AdapterService/UploadAdapter"
        with channel_to(guarded.admin_listen) as channel:
            messages = [frame.SerializeToString()]

            assert code_of(channel, path, bearer("poet-only"), messages) in (
                DENIED,
                grpc.StatusCode.UNIMPLEMENTED,  # no server takes uploads without a folder for them
            )
        return

    with pytest.raises(PermissionDeniedError) as caught:
        calls[method]()
    assert str(caught.value) == f"client 'poet-only' may not use adapter {adapter_id!r}"


def test_a_list_has_what_the_caller_may_use(guarded: Addresses, poet_only: Caller) -> None:
    """On both listeners, for any prefix, and the next page begins after what was shown."""
    credentials = Credentials(token=token_of("everything"))
    with Client(guarded.listen, credentials=credentials) as everything:
        all_ids = {adapter.adapter_id for adapter in everything.list_adapters()}

    assert len(all_ids) > 3
    for client in (poet_only.client, poet_only.admin):
        assert [a.adapter_id for a in client.list_adapters()] == ["poet"]
        assert [a.adapter_id for a in client.list_adapters("pi")] == []


@pytest.mark.parametrize(
    "source", ["pirate", "lyco.safetensors", "nowhere", "upload:x", "s3://b/x"]
)
def test_anothers_file_cannot_be_loaded_under_an_id_of_ones_own(
    poet_only: Caller, source: str
) -> None:
    """The limits on ids would be worth nothing; and whether the file exists is not told."""
    with pytest.raises(PermissionDeniedError, match="may not load from") as caught:
        poet_only.admin.load_adapter(LoadSpec(adapter_id="poets/mine", source=source))

    assert source in str(caught.value)


def test_a_load_from_ones_own_files_works(poet_only: Caller) -> None:
    """And its adapter can be removed again."""
    spec = LoadSpec(adapter_id="poets/mine", source="poet")

    assert poet_only.admin.load_adapter(spec).adapter_id == "poets/mine"
    assert poet_only.admin.unload_adapter("poets/mine") >= 0
    with pytest.raises(NotFoundError):
        poet_only.admin.get_adapter("poets/mine")


def test_no_client_learns_by_its_cache_what_another_has_asked(guarded: Addresses) -> None:
    """A prompt that is found in the cache is answered sooner, and says so."""
    request = GenerationRequest(
        prompt=TextPrompt(text="a secret that only one client has " * 20),
        sampling=SamplingParams(max_tokens=1),
    )
    cached = []
    for name in ("reader", "reader", "everything"):
        credentials = Credentials(token=token_of(name))
        with Client(guarded.listen, credentials=credentials) as client:
            (finished,) = client.generate_once(request).finished
            cached.append(finished.usage.cached_prompt_tokens)

    assert cached[0] == cached[2] == 0
    assert cached[1] > 0


def test_requests_for_images_are_checked_as_well(
    pipeline_folder: Path, image_adapter_folder: Path, clients_file: Path
) -> None:
    """One rule for every engine."""
    settings = tiny_settings(
        pipeline_folder, image_adapter_folder, security={"clients": clients_file}
    )
    errors: list[ClientError] = []
    with running_server(settings) as server:
        address = server.ready.result().listen
        for name in ("poet-only", "keeper"):
            credentials = Credentials(token=token_of(name))
            with (
                Client(address, credentials=credentials) as client,
                pytest.raises(PermissionDeniedError) as caught,
            ):
                client.generate_image_once(
                    ImageRequest(prompt="x", adapters=(AdapterWeight(adapter_id="ink"),))
                )
            errors.append(caught.value)

    assert [str(error) for error in errors] == [
        "client 'poet-only' may not use adapter 'ink'",
        "GenerateImage needs the permission infer, which client 'keeper' lacks",
    ]


def test_an_alias_of_ones_own_does_not_lead_to_anothers_adapter(
    model_folder: Path, adapter_folder: Path, clients_file: Path, tmp_path: Path
) -> None:
    """What a name stands for is checked as well as the name, and not told to who may not know."""
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(
        "adapters:\n"
        "  - {id: pirate, source: pirate, aliases: [poets/best, poets/top]}\n"
        "  - {id: poet, source: poet, aliases: [poets/first, shared/first]}\n"
    )
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        security={"clients": clients_file},
        adapters={"manifest": manifest},
    )
    credentials = Credentials(token=token_of("poet-only"))
    with (
        running_server(settings) as server,
        Client(server.ready.result().listen, credentials=credentials) as client,
    ):
        used = client.generate_once(request_with("poets/first"))
        shown = client.get_adapter("poets/first")
        hidden = "^client 'poet-only' may not use the adapter that 'poets/best' is an alias of$"
        with pytest.raises(PermissionDeniedError, match=hidden):
            client.generate_once(request_with("poets/best"))
        with pytest.raises(PermissionDeniedError, match=hidden):
            client.generate_once(request_with("poets/best", "poets/top"))  # twice the same
        with pytest.raises(PermissionDeniedError, match=hidden):
            client.get_adapter("poets/best")

    assert used.started.mix_name == "poet"
    assert (shown.adapter_id, tuple(shown.aliases)) == ("poet", ("poets/first",))

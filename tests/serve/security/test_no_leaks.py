"""What clients and the log are told: no path of the server, no token, no prompt."""

import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from lokr_serve.app import Addresses
from lokr_serve.client import Client, Credentials, UnauthenticatedError
from lokr_serve.errors import ModelError
from lokr_serve.logs import log_handler
from lokr_serve.types import GenerationRequest, SamplingParams, TextPrompt
from lokr_serve.v1 import adapters_pb2 as adapters
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from lokr_serve.v1.common_pb2 import AdapterWeight
from lokr_serve.v1.text_pb2 import GenerateOnceRequest
from lokr_serve.v1.text_pb2_grpc import TextServiceStub
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.pki import token_of

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Break = Callable[[Path], None]  # does something to a folder that holds a good adapter


def _tensors(change: Callable[[bytes], bytes]) -> Break:
    def apply(folder: Path) -> None:
        (folder / TENSORS).write_bytes(change((folder / TENSORS).read_bytes()))

    return apply


def _config(content: bytes) -> Break:
    def apply(folder: Path) -> None:
        (folder / CONFIG).write_bytes(content)

    return apply


def _poison(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors[min(tensors)].view(-1)[0] = torch.nan
    save_file(tensors, folder / TENSORS)


def _pickle(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "adapter_model.bin")


def _several(folder: Path) -> None:
    (folder / CONFIG).unlink()
    shutil.copy(folder / TENSORS, folder / "b.safetensors")
    (folder / TENSORS).rename(folder / "a.safetensors")


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _pipe(folder: Path) -> None:
    (folder / TENSORS).unlink()
    os.mkfifo(folder / TENSORS)


def _folder_in_place(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).mkdir()


def _link(target: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / TENSORS).unlink()
        (folder / TENSORS).symlink_to(target)

    return apply


BREAKS: dict[str, Break] = {
    "empty-file": _tensors(lambda content: b""),
    "cut": _tensors(lambda content: content[: len(content) // 2]),
    "no-safetensors": _tensors(lambda content: b"not at all" * 10),
    "zip": _tensors(lambda content: b"PK\x03\x04" + content),
    "huge-header": _tensors(lambda content: (1 << 62).to_bytes(8, "little") + content[8:]),
    "header-no-json": _tensors(lambda content: content[:8] + b"{" * (len(content) - 8)),
    "longer": _tensors(lambda content: content + b"more"),
    "nan": _poison,
    "config-no-json": _config(b"{"),
    "config-no-object": _config(b"[]"),
    "config-other-type": _config(b'{"peft_type": "IA3"}'),
    "config-no-text": _config(b"\xff\xfe"),
    "pickle": _pickle,
    "several": _several,
    "empty-folder": _empty,
    "pipe": _pipe,
    "folder": _folder_in_place,
    "link-to-nothing": _link("nowhere"),
    "link-to-itself": _link(TENSORS),
    "link-out": _link("/etc/hostname"),
    "gone": shutil.rmtree,
}
SOURCES = (
    "nowhere",
    "nowhere/at/all",
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "a" * 300,
    "a/" * 3000,
    "poet/adapter_config.json",
    "file:///etc/passwd",
    "upload:0000",
    "upload:../x",
    "hf://org/nothing",
    "hf://org/../x",
    "s3://bucket/key.safetensors",
)


@pytest.fixture
def store(adapter_folder: Path, tmp_path: Path) -> Path:
    """A folder with an adapter for each kind of break, all of them good for now."""
    folder = tmp_path / "very-private-place" / "store"
    for name in ("poet", *BREAKS):
        shutil.copytree(adapter_folder / "poet", folder / name)
    return folder


@pytest.fixture
def addresses(model_folder: Path, store: Path) -> Iterator[Addresses]:
    """A server of this folder, and of folders for uploads and for the hub beside it."""
    (store.parent / "hub").mkdir()
    (store.parent / "uploads").mkdir()
    settings = tiny_settings(
        model_folder,
        store,
        adapters={"hub": store.parent / "hub", "uploads": store.parent / "uploads"},
    )
    with running_server(settings) as server:
        yield server.ready.result()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    """All that the process logs, as it would be written."""
    caplog.set_level(logging.DEBUG)
    written = io.StringIO()
    handler = log_handler(written)
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


def told(call: Callable[[], object]) -> str:
    """Return all that a client sees of a call that fails: text, details, and every trailer."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    call_that_failed = cast(grpc.Call, caught.value)
    return f"{call_that_failed!r}{call_that_failed.trailing_metadata()}"


def require_private(texts: Sequence[str], place: Path) -> None:
    """Check that no text tells of a place, or of Python."""
    for text in texts:
        for secret in (str(place), place.name, "Traceback", "<_io", "object at 0x"):
            assert secret not in text, text


def test_no_broken_file_tells_where_it_lies(addresses: Addresses, store: Path) -> None:
    """Neither when it is loaded, nor when it is used, nor in a list of adapters afterwards."""
    place = store.parent
    for name, break_it in BREAKS.items():
        break_it(store / name)
    with (
        grpc.insecure_channel(addresses.admin_listen) as admin,
        grpc.insecure_channel(addresses.listen) as inference,
    ):
        stub, text = AdapterServiceStub(admin), TextServiceStub(inference)
        texts = [
            told(
                lambda name=name: stub.LoadAdapter(  # type: ignore[misc]
                    adapters.LoadAdapterRequest(adapter_id="new", source=name)
                )
            )
            for name in BREAKS
        ]
        texts += [
            told(
                lambda name=name: text.GenerateOnce(  # type: ignore[misc]
                    GenerateOnceRequest(text="x", adapters=[AdapterWeight(adapter_id=name)])
                )
            )
            for name in BREAKS
        ]
        listed = stub.ListAdapters(adapters.ListAdaptersRequest())
        shown = [stub.GetAdapter(adapters.GetAdapterRequest(adapter_id=name)) for name in BREAKS]

    assert all(reply.adapter.error.message for reply in shown)
    require_private([*texts, str(listed), *map(str, shown)], place)


def test_no_source_tells_where_the_server_looks(addresses: Addresses, store: Path) -> None:
    """Whatever a caller asks for."""
    with grpc.insecure_channel(addresses.admin_listen) as channel:
        stub = AdapterServiceStub(channel)
        texts = [
            told(
                lambda source=source: stub.LoadAdapter(  # type: ignore[misc]
                    adapters.LoadAdapterRequest(adapter_id="new", source=source)
                )
            )
            for source in SOURCES
        ]

    require_private(texts, store.parent)


def test_the_servers_own_affairs_are_told_to_the_log_alone(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the model names its folder, which is no caller's business."""

    def fail(*arguments: object) -> None:
        raise ModelError(f"model.path: {model_folder} is broken")

    monkeypatch.setattr("lokr_serve.text.engine.TextEngine.check", fail)
    with (
        running_server(tiny_settings(model_folder)) as server,
        grpc.insecure_channel(server.ready.result().listen) as channel,
    ):
        text = told(lambda: TextServiceStub(channel).GenerateOnce(GenerateOnceRequest(text="x")))

    require_private([text], model_folder)
    assert "internal error" in text
    assert str(model_folder) in caplog.text


def test_neither_tokens_nor_prompts_are_logged(
    model_folder: Path, adapter_folder: Path, clients_file: Path, log: io.StringIO
) -> None:
    """At the most talkative level, of good calls and of refused ones."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        security={"clients": clients_file},
        server={"log_level": "debug", "access_log": "all"},
    )
    prompt = "a prompt that nobody else should read"
    request = GenerationRequest(
        prompt=TextPrompt(text=prompt), sampling=SamplingParams(max_tokens=2)
    )
    wrong = "this-token-is-of-nobody-at-all"
    with running_server(settings) as server:
        addresses = server.ready.result()
        for token in (token_of("everything"), wrong):
            credentials = Credentials(token=token)
            with (
                Client(addresses.listen, credentials=credentials) as client,
                Client(addresses.admin_listen, credentials=credentials) as admin,
            ):
                try:
                    client.generate_once(request)
                    admin.update_adapter("poet", pinned=False)
                except UnauthenticatedError:
                    assert token == wrong

    assert "UpdateAdapter" in log.getvalue()
    for secret in (token_of("everything"), wrong, prompt, "nobody else"):
        assert secret not in log.getvalue()

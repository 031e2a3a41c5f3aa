"""Whole uploads: what is registered, what is kept of it, and for how long."""

from pathlib import Path

import pytest

from lokr_serve.client import AlreadyExistsError, NotFoundError
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterWeight,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
    UploadOptions,
)
from tests.serve.rpc.uploading import CONFIG, TENSORS, Sent, kept, offsets, send, until
from tests.serve.running import Connection

REPLACE = UploadOptions(replace=True)


def tokens_with(server: Connection, adapter_id: str) -> tuple[int, ...]:
    """Return the tokens that an adapter makes likeliest."""
    request = GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=(AdapterWeight(adapter_id=adapter_id),),
        sampling=SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
    )
    return server.client.generate_once(request).chunks[0].token_ids


def test_an_uploaded_adapter_is_the_one_that_was_sent(
    server: Connection, adapter_folder: Path
) -> None:
    """The same bytes and the same configuration must make the same adapter."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "poet")
    loaded = server.admin.load_adapter(LoadSpec(adapter_id="poet", source="poet"))

    assert sent.state is AdapterState.READY
    assert (sent.format, sent.version, sent.digest) == ("peft", loaded.version, loaded.digest)
    assert sent.source.startswith(f"upload:{sent.digest}-")
    assert tokens_with(server, "sent") == tokens_with(server, "poet")


def test_a_file_without_configuration_goes_as_it_is(
    server: Connection, adapter_folder: Path
) -> None:
    """Most files of the trainers are whole without one."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "lyco.safetensors")

    assert (sent.format, sent.source) == ("lycoris", f"upload:{sent.digest}")


def test_options_are_those_of_a_load(server: Connection, adapter_folder: Path) -> None:
    """An upload registers as a load does."""
    options = UploadOptions(
        pinned=True, ttl_seconds=500, overrides=AdapterOverrides(scale_override=2.0)
    )

    sent = server.admin.upload_adapter("sent", adapter_folder / "poet", options)

    assert (sent.pinned, sent.ttl_seconds) == (True, 500)
    assert {scale.source for scale in sent.scales} == {"scale_override"}


def test_nobody_else_on_the_machine_may_read_uploads(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """They are somebody's work."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "poet")
    folder = uploads / sent.source.removeprefix("upload:")

    modes = [path.stat().st_mode & 0o777 for path in (uploads, folder)]
    file_modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert modes == [0o700, 0o700]
    assert file_modes == {TENSORS: 0o600, CONFIG: 0o600, "sent-by-anyone": 0o600}


def test_a_client_that_knows_nothing_of_offsets_may_send_all_at_once(
    server: Connection, poet: Sent
) -> None:
    """The simplest client works as long as nothing has broken off before."""
    assert send(server.adapters, poet.header(), *poet.chunks()) == 0
    assert server.admin.get_adapter("sent").digest == poet.digest


def test_content_that_is_stored_need_not_come_again(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """One file serves as many ids as use it, and goes with the last of them."""
    told: list[tuple[int, int]] = []
    first = server.admin.upload_adapter("sent", adapter_folder / "poet")
    second = server.admin.upload_adapter("again", adapter_folder / "poet", progress=offsets(told))
    third = server.admin.load_adapter(LoadSpec(adapter_id="third", source=first.source))
    server.admin.unload_adapter("sent")
    server.admin.unload_adapter("third")

    assert len(told) == 1
    assert told[0][0] == told[0][1]
    assert first.source == second.source == third.source
    assert kept(uploads) == [first.source.removeprefix("upload:")]
    server.admin.unload_adapter("again")
    until(lambda: not kept(uploads))


def test_an_upload_replaces_only_when_told_and_leaves_no_file_behind(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Nobody's adapter changes by accident, and what is no longer used takes no room."""
    first = server.admin.upload_adapter("sent", adapter_folder / "poet")

    with pytest.raises(AlreadyExistsError):
        server.admin.upload_adapter("sent", adapter_folder / "pirate")
    assert kept(uploads) == [first.source.removeprefix("upload:")]

    second = server.admin.upload_adapter("sent", adapter_folder / "pirate", REPLACE)
    assert second.version != first.version
    until(lambda: kept(uploads) == [second.source.removeprefix("upload:")])


def test_unloading_never_deletes_a_source_file(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Only what came by an upload is the server's own."""
    server.admin.load_adapter(LoadSpec(adapter_id="sent", source="poet"))
    again = server.admin.upload_adapter("sent", adapter_folder / "poet")

    server.admin.unload_adapter("sent")

    assert again.source == "poet"  # its content was there already
    assert (adapter_folder / "poet" / TENSORS).exists()
    assert not kept(uploads)


def test_an_upload_that_expires_takes_its_file_along(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Nothing could name it any more."""
    server.admin.upload_adapter("sent", adapter_folder / "poet", UploadOptions(ttl_seconds=0.01))

    until(lambda: not kept(uploads))
    with pytest.raises(NotFoundError):
        server.admin.get_adapter("sent")

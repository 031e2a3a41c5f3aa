"""Adapter files that are refused, with what is wrong with them, and leave streams alone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lokr_serve.client import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterWeight,
    Finished,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
)
from tests.serve.running import Connection, connected, running_server, tiny_settings
from tests.tiny import peft_lokr, tiny_llama

TENSORS = "adapter_model.safetensors"
PLAIN = GenerationRequest(
    prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
)

Break = Callable[[Path], None]


def truncate(folder: Path) -> None:
    """Cut the file off."""
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


def scramble(folder: Path) -> None:
    """Replace the file by something else."""
    (folder / TENSORS).write_bytes(b"no safetensors at all")


def poison(folder: Path) -> None:
    """Put a NaN into the first tensor."""
    tensors = load_file(folder / TENSORS)
    tensors[min(tensors)].view(-1)[0] = torch.nan
    save_file(tensors, folder / TENSORS)


def add_key(folder: Path) -> None:
    """Add a tensor for a module that the base does not have."""
    tensors = load_file(folder / TENSORS)
    tensors["base_model.model.nowhere.lokr_w1"] = torch.ones(2, 2)
    save_file(tensors, folder / TENSORS)


def break_config(folder: Path) -> None:
    """Make the configuration unreadable."""
    (folder / "adapter_config.json").write_text("{")


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


@pytest.mark.parametrize(
    ("break_", "reason", "words"),
    [
        (truncate, "ADAPTER_FILE", [TENSORS]),
        (scramble, "ADAPTER_FILE", [TENSORS, "safetensors"]),
        (poison, "ADAPTER_TENSOR", ["lokr_w", "finite"]),
        (add_key, "UNMATCHED_KEYS", ["nowhere", "partial"]),
        (break_config, "ADAPTER_CONFIG", ["adapter_config.json"]),
    ],
)
def test_a_broken_file_is_refused_and_leaves_no_trace(
    server: Connection, store: Path, break_: Break, reason: str, words: list[str]
) -> None:
    """The message names the file or the tensor; nothing is registered; streams go on."""
    broken = Path(shutil.copytree(store / "poet", store / "broken"))
    break_(broken)
    alone = server.client.generate_once(PLAIN).chunks[0].token_ids
    stream = server.client.generate(PLAIN)
    next(stream)

    with pytest.raises(FailedPreconditionError) as caught:
        server.admin.load_adapter(LoadSpec(adapter_id="broken", source="broken"))
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(NotFoundError):
        server.admin.get_adapter("broken")
    *chunks, finished = stream
    assert isinstance(finished, Finished)
    assert tuple(t for chunk in chunks for t in getattr(chunk, "token_ids", ())) == alone


def test_an_adapter_of_another_base_is_refused_by_module_and_shapes(
    server: Connection, store: Path
) -> None:
    """Who mixed up two models sees it at once."""
    peft_lokr(lambda: tiny_llama(hidden_size=32, intermediate_size=48), store / "other")

    with pytest.raises(FailedPreconditionError) as caught:
        server.admin.load_adapter(LoadSpec(adapter_id="other", source="other"))
    assert caught.value.reason == "ADAPTER_MISMATCH"
    assert "_proj" in caught.value.metadata["module"]
    assert caught.value.metadata["found"] != caught.value.metadata["expected"]
    assert caught.value.metadata["expected"] in str(caught.value)


def test_a_registered_adapter_that_fails_to_load_says_so(model_folder: Path, store: Path) -> None:
    """On demand it fails with its reason, and its state shows it until the file is repaired."""
    scramble(store / "poet")
    request = GenerationRequest(
        prompt=TextPrompt(text="x"), adapters=(AdapterWeight(adapter_id="poet"),)
    )
    with (
        running_server(tiny_settings(model_folder, store)) as running,
        connected(running.ready.result()) as server,
    ):
        with pytest.raises(FailedPreconditionError) as caught:
            server.client.generate_once(request)
        status = server.admin.get_adapter("poet")

    assert caught.value.reason == "ADAPTER_LOAD_FAILED"
    assert status.state is AdapterState.FAILED
    assert status.error is not None
    assert status.error.reason == "ADAPTER_FILE"


def test_an_adapter_beyond_the_budget_is_refused(model_folder: Path, store: Path) -> None:
    """The message says how much is needed and how much there is."""
    settings = tiny_settings(model_folder, adapters={"directory": store, "device_bytes": 100})
    with (
        running_server(settings) as running,
        connected(running.ready.result()) as server,
        pytest.raises(ResourceExhaustedError) as caught,
    ):
        server.admin.load_adapter(LoadSpec(adapter_id="big", source="poet"))

    assert caught.value.reason == "ADAPTER_BUDGET"
    assert "100 bytes" in str(caught.value)


def test_a_partial_load_lists_what_it_left_out(server: Connection, store: Path) -> None:
    """Leaving tensors out is a choice, and stays visible."""
    add_key(store / "poet")
    adapter = server.admin.load_adapter(
        LoadSpec(adapter_id="some", source="poet", overrides=AdapterOverrides(partial=True))
    )

    assert any("nowhere" in warning for warning in adapter.warnings)

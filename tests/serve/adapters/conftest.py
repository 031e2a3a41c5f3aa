"""A tiny model, a folder of adapters made by a real trainer, and registries over both."""

import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

import lokr_core
from lokr_core import Adapted, Adapter, AdapterReader, ReadOptions
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import AdapterSettings
from lokr_serve.metrics import Metrics
from tests.tiny import peft_lokr, tiny_llama

TENSORS = "adapter_model.safetensors"
MakeRegistry = Callable[..., AdapterRegistry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An adapter folder; every adapter written to it takes the same number of bytes."""

    root: Path
    template: Path
    num_bytes: int  # of one adapter in memory

    def write(self, name: str, seed: int = 1, factor: float = 1.0) -> Path:
        """Write an adapter whose factors the seed draws; an older one of the name is replaced."""
        folder = self.root / name
        shutil.copytree(self.template, folder, dirs_exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: factor * 0.3 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in sorted(load_file(self.template / TENSORS).items())
        }
        (folder / TENSORS).unlink()
        save_file(tensors, folder / TENSORS)
        return folder

    def write_broken(self, name: str) -> None:
        """Write an adapter whose tensor file is no safetensors file."""
        (self.write(name) / TENSORS).write_bytes(b"not tensors")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoKr adapter made by PEFT."""
    return peft_lokr(
        tiny_llama, tmp_path_factory.mktemp("peft") / "lokr", target_modules=["q_proj", "v_proj"]
    )


@pytest.fixture(scope="session")
def adapter_bytes(template: Path) -> int:
    """Bytes of one adapter in memory."""
    return lokr_core.read_adapter(template, lokr_core.attach(tiny_llama()).spec).num_bytes


@pytest.fixture
def store(tmp_path: Path, template: Path, adapter_bytes: int) -> Store:
    """An empty adapter folder."""
    root = tmp_path / "store"
    root.mkdir()
    return Store(root=root, template=template, num_bytes=adapter_bytes)


@pytest.fixture
def adapted() -> Adapted:
    """A tiny model that adapters can be added to."""
    return lokr_core.attach(tiny_llama())


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of their own."""
    return Metrics(version="test")


@pytest_asyncio.fixture
async def make_registry(
    adapted: Adapted, store: Store, metrics: Metrics
) -> AsyncIterator[MakeRegistry]:
    """Builds registries over the folder and closes them; takes fields of AdapterSettings."""
    made: list[AdapterRegistry] = []

    def make(**fields: object) -> AdapterRegistry:
        settings = AdapterSettings.model_validate({"directory": store.root, **fields})
        made.append(AdapterRegistry(adapted=adapted, settings=settings, metrics=metrics))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()


@dataclass(slots=True)
class Gate:
    """Counts the reads of adapters, and holds them back while it is closed."""

    opened: threading.Event = field(default_factory=threading.Event)
    num_reads: Counter[str] = field(default_factory=Counter)

    def close(self) -> None:
        """Hold reads back from now on."""
        self.opened.clear()

    def open(self) -> None:
        """Let reads go on."""
        self.opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate before the real reader; it is open at first."""
    gate, read = Gate(), AdapterReader.read
    gate.open()

    def gated(
        reader: AdapterReader, path: Path, adapter_id: str | None, options: ReadOptions | None
    ) -> Adapter:
        gate.num_reads[path.name] += 1
        assert gate.opened.wait(30)
        return read(reader, path, adapter_id, options)

    monkeypatch.setattr(AdapterReader, "read", gated)
    return gate

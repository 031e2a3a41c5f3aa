"""Stage: the real registry and engine over one tiny model, with budgets that are too small."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import torch

from lokr_core import AdapterRef, attach, read_adapter
from lokr_core.layers.discover import discover
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.config import AdapterSettings, TextSettings
from lokr_serve.metrics import Metrics
from lokr_serve.text import TextEngine
from lokr_serve.types import LoadSpec
from tests.oracle.peers import AdapterFile, Architecture, Peers

TEXT = TextSettings(
    max_rows=10, max_step_tokens=48, page_tokens=8, cache_tokens=240, max_queue=1000
)
BANK_SHARE = 0.4  # of the adapters' bytes that lie side by side for batched products
MERGED_MODELS = 3  # what the merge cache has room for, in models


class Stage:
    """Registry and engine over adapters whose every version is known."""

    def __init__(self, architecture: Architecture, peers: Peers, dtype: torch.dtype) -> None:
        self.files = peers.files
        self.metrics = Metrics(version="oracle")
        self._by_ref: dict[AdapterRef, AdapterFile] = {}
        self._published: dict[str, list[AdapterFile]] = {name: [] for name in peers.files}
        self._loading: Counter[AdapterFile] = Counter()
        self._changed = asyncio.Event()
        model = architecture.make_model(dtype)
        sizes = self._read_all(peers, model)
        self.adapted = attach(
            model,
            merge_cache_bytes=MERGED_MODELS * sum(p.nbytes for p in model.parameters()),
            bank_bytes=int(BANK_SHARE * sum(sizes)),
        )
        settings = AdapterSettings(
            directory=peers.folder,
            device_bytes=sum(sizes),  # one version of each: a replacement in flight evicts another
        )
        self.registry = AdapterRegistry(
            adapted=self.adapted, settings=settings, metrics=self.metrics
        )
        self.engine = TextEngine(
            adapted=self.adapted, tokenizer=None, settings=TEXT, metrics=self.metrics
        )

    def _read_all(self, peers: Peers, model: torch.nn.Module) -> list[int]:
        """Note the ref of every file, and return the bytes of each adapter."""
        spec = discover(model)
        sizes: list[int] = []
        for adapter_id, files in peers.files.items():
            for file in files:
                adapter = read_adapter(peers.folder / file.source, spec, adapter_id)
                self._by_ref[adapter.ref] = file
            sizes.append(adapter.num_bytes)
        return sizes

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Load the first version of every adapter, and run the engine inside the block."""
        self.engine.start()
        try:
            for files in self.files.values():
                await self.load(files[0])
            yield self
        finally:
            await self.engine.stop()
            await self.registry.close()

    async def load(self, file: AdapterFile) -> None:
        """Load a version in the place of whatever its id had."""
        self._loading[file] += 1
        try:
            spec = LoadSpec(adapter_id=file.adapter_id, source=file.source, replace=True)
            await self.registry.load(spec)
            self._published[file.adapter_id].append(file)
        finally:
            self._loading[file] -= 1
            self.notify()

    @property
    def changed(self) -> asyncio.Event:
        """Is set at the next change: what was refused before may be possible after it."""
        return self._changed

    def notify(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def num_published(self, adapter_id: str) -> int:
        """Return how many versions of an id were published until now."""
        return len(self._published[adapter_id])

    def find(self, ref: AdapterRef, num_published: int) -> AdapterFile:
        """Return the file of a version that a request got.

        Args:
            ref: The version.
            num_published: How many versions of the id were published when the request came; what
                had been replaced by then must not be served.
        """
        file = self._by_ref[ref]
        recent = self._published[ref.adapter_id][max(0, num_published - 1) :]
        assert file in recent or self._loading[file], f"{ref} was outdated when a request came"
        return file

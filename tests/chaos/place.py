"""Place: the files of one run, of which two contents for each kind, and settings that are tight."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lokr_core import read_adapter
from lokr_core.layers.discover import discover
from tests.chaos.access import write_clients
from tests.chaos.disk import DISK_BYTES, Disk
from tests.chaos.store import OPEN, PINNED
from tests.oracle.peers import LLAMA, AdapterFile, Architecture, Peers
from tests.tiny import save_model, tiny_llama, tiny_tokenizer

MAX_POSITIONS = 2048
KINDS = ("peft-lokr", "peft-lora", "peft-dora", "lycoris-lokr-full")
ROOM_SHARE = 0.8  # of the bytes of all contents, so that something always has to go
MERGED_MODELS = 2  # what the merge cache has room for
MAX_RECEIVE_BYTES = 1024 * 1024
CACHE_TOKENS, PAGE_TOKENS = 1600, 8
MAX_QUEUE = 24
STORED_BYTES = DISK_BYTES * 3 // 8  # of uploads, and as much of copies: a few files

ARCHITECTURE: Architecture = replace(
    LLAMA,
    make_model=partial(tiny_llama, max_position_embeddings=MAX_POSITIONS),
    adapters={kind: LLAMA.adapters[kind] for kind in KINDS},
)

Tree = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Content:
    """One content that an adapter may have, and what it is known by."""

    file: AdapterFile
    version: str  # the same under every id
    digest: str  # of the tensor file

    @property
    def source(self) -> str:
        """Where it lies in the adapter folder."""
        return self.file.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Bytes that the server may take."""

    adapter_bytes: int
    merged_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Model, adapters, and where a run keeps its files."""

    folder: Path
    disk: Disk
    peers: Peers
    contents: Mapping[str, Content]  # by version
    budgets: Budgets

    @property
    def adapters(self) -> Path:
        """The adapter folder."""
        return self.folder / "adapters"

    @property
    def manifest(self) -> Path:
        """The file that declares adapters."""
        return self.folder / "manifest.yaml"

    @property
    def uploads(self) -> Path:
        """Where the server keeps what is uploaded."""
        return self.disk.folder / "uploads"

    @property
    def fetched(self) -> Path:
        """Where the server keeps copies of what it fetched."""
        return self.disk.folder / "fetched"

    @property
    def lasting(self) -> dict[str, str]:
        """The version of each id that the adapter folder itself gives; nobody changes them."""
        return {
            content.source.removesuffix(".safetensors"): version
            for version, content in self.contents.items()
        }

    def write_settings(self) -> Path:
        """Write the settings and the file of clients, and return the former."""
        write_clients(self.folder / "clients.toml")
        path = self.folder / "settings.toml"
        path.write_text(_toml(_settings(self)), encoding="utf-8")
        return path


def build_place(folder: Path, disk: Disk) -> Place:
    """Write a model and its adapters, and choose budgets that are too small for them."""
    adapters = folder / "adapters"
    adapters.mkdir()
    save_model(folder / "model", ARCHITECTURE.make_model(torch.float32), tiny_tokenizer())
    peers = Peers(ARCHITECTURE, adapters, torch.float64)
    model = ARCHITECTURE.make_model(torch.float64)
    spec = discover(model)
    contents, num_bytes = {}, 0
    for adapter_id, files in peers.files.items():
        for file in files:
            adapter = read_adapter(adapters / file.source, spec, adapter_id)
            version, digest = adapter.ref.version, adapter.info.digest
            contents[version] = Content(file=file, version=version, digest=digest)
            num_bytes += adapter.num_bytes
    budgets = Budgets(
        adapter_bytes=int(ROOM_SHARE * num_bytes),
        merged_bytes=MERGED_MODELS * sum(p.nbytes for p in model.parameters()),
    )
    return Place(folder=folder, disk=disk, peers=peers, contents=contents, budgets=budgets)


def _settings(place: Place) -> Tree:
    return {
        "model": {
            "path": str(place.folder / "model"),
            "device": "cpu",
            "dtype": "float64",
            "num_threads": 1,
        },
        "server": {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "drain_seconds": 3.0,
            "max_receive_bytes": MAX_RECEIVE_BYTES,
        },
        "security": {"clients": str(place.folder / "clients.toml")},
        "adapters": {
            "directory": str(place.adapters),
            "manifest": str(place.manifest),
            "manifest_seconds": 0.2,
            "uploads": str(place.uploads),
            "upload_bytes": STORED_BYTES,
            "remote": [OPEN, PINNED],
            "fetched": str(place.fetched),
            "fetched_bytes": STORED_BYTES,
            "fetch_seconds": 2.0,
            "device_bytes": place.budgets.adapter_bytes,
            "merge_cache_bytes": place.budgets.merged_bytes,
            "bank_bytes": place.budgets.adapter_bytes // 4,
            "max_loads": 2,
            "load_share": 1.0,
            "retry_seconds": 0.2,
            "max_retry_seconds": 1.0,
        },
        "text": {
            "max_rows": 10,
            "max_step_tokens": 64,
            "page_tokens": PAGE_TOKENS,
            "cache_tokens": CACHE_TOKENS,
            "max_queue": MAX_QUEUE,
        },
    }


def _toml(tree: Tree) -> str:
    """Write settings; JSON's strings, numbers and arrays are TOML's as well."""
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"

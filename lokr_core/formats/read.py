"""AdapterReader: an adapter's files, checked against a base model and packed into one buffer."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lokr_core.adapter import Adapter, AdapterInfo
from lokr_core.errors import AdapterError, AdapterFileError, UnmatchedKeysError
from lokr_core.formats.binding import Binding, bind
from lokr_core.formats.file import FileContent, parse_file
from lokr_core.formats.info import describe
from lokr_core.formats.locate import default_id
from lokr_core.formats.modules import ModuleReader
from lokr_core.formats.names import ModuleNames
from lokr_core.formats.place import place
from lokr_core.formats.recipe import Recipe, recipe_of
from lokr_core.formats.scale import ScaleOverrides
from lokr_core.formats.source import open_source
from lokr_core.formats.tensors import is_finite
from lokr_core.layout import PackedFactors, tensors_of
from lokr_core.mix import AdapterRef, check_adapter_id
from lokr_core.packing import pack, with_layout
from lokr_core.spec import ModelSpec
from lokr_core.weights import ModuleWeights

MAX_RECIPES = 32  # kinds of adapters that a server is likely to hold at a time
MAX_RECIPE_HEADER_BYTES = 4 << 20  # what is kept for the next file must not outgrow the adapters
VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What the caller says beside the path."""

    overrides: ScaleOverrides = field(default_factory=ScaleOverrides)
    partial: bool = False  # whether keys that match no module are left out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What two files must have in common for one recipe."""

    header: bytes
    num_bytes: int  # of the whole file: an equal header with less behind it is a truncated file
    config: bytes | None
    options: ReadOptions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Content:
    """What an adapter is made of, before it has a name."""

    packed: PackedFactors
    info: AdapterInfo


class AdapterReader:
    """Reads adapters for one base, from any thread.

    What it works out from the header of a file is kept for files with an equal one.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._names = ModuleNames(spec)
        self._lock = threading.Lock()
        self._recipes: OrderedDict[_Kind, Recipe] = OrderedDict()  # least recently used first

    def read(
        self, path: Path, adapter_id: str | None = None, options: ReadOptions | None = None
    ) -> Adapter:
        """Read an adapter; see :func:`read_adapter`."""
        adapter_id = check_adapter_id(default_id(path) if adapter_id is None else adapter_id)
        source = open_source(path, self._is_known)
        kind = _Kind(
            header=source.file.header,
            num_bytes=source.file.content.numel(),
            config=source.config,
            options=options or ReadOptions(),
        )
        content = self._replay(kind, source.file) or self._read_step_by_step(kind, source.file)
        return Adapter(
            ref=AdapterRef(adapter_id=adapter_id, version=_version(kind, content.info.digest)),
            spec=self._spec,
            layout=content.packed.layout,
            buffer=content.packed.buffer,
            scales=content.packed.scales,
            info=content.info,
        )

    def _replay(self, kind: _Kind, file: FileContent) -> _Content | None:
        with self._lock:
            recipe = self._recipes.get(kind)
            if recipe is not None:
                self._recipes.move_to_end(kind)
        buffer = None if recipe is None else recipe.apply(file.content)
        if recipe is None or buffer is None:
            return None
        packed = PackedFactors(layout=recipe.layout, buffer=buffer, scales=recipe.scales)
        return _Content(packed=packed, info=replace(recipe.info, digest=file.digest()))

    def _read_step_by_step(self, kind: _Kind, file: FileContent) -> _Content:
        tensor_file = parse_file(file)
        reader = ModuleReader.of(self._spec, tensor_file, kind.config, kind.options.overrides)
        binding = bind(tensor_file.tensors, self._names)
        modules = [reader.read(module) for module in binding.modules]
        _check_complete(binding, file.path, partial=kind.options.partial)
        weights = place((module.module, module.change) for module in modules)
        if not weights:
            raise AdapterFileError(f"{file.path}: holds no change of the base model")
        packed = pack(weights, self._spec.compute_dtype)
        if not is_finite(packed.buffer):
            raise _overflow(weights, packed.buffer.dtype)
        packed = with_layout(packed, self._spec.shared_layout(packed.layout))
        info = describe(reader, modules, weights, binding, file.digest())
        recipe = recipe_of(file.content, binding, weights, packed, info)
        if recipe is not None:
            self._keep(kind, recipe)
        return _Content(packed=packed, info=info)

    def _is_known(self, header: bytes, num_bytes: int) -> bool:
        with self._lock:
            known = list(self._recipes)
        return any(kind.num_bytes == num_bytes and kind.header == header for kind in known)

    def _keep(self, kind: _Kind, recipe: Recipe) -> None:
        if len(kind.header) > MAX_RECIPE_HEADER_BYTES:
            return
        with self._lock:
            self._recipes[kind] = recipe
            if len(self._recipes) > MAX_RECIPES:
                self._recipes.popitem(last=False)


def _overflow(weights: Mapping[str, ModuleWeights], dtype: torch.dtype) -> AdapterError:
    """Return the error for numbers, or products of them, that the buffer cannot hold."""
    path = next(
        path
        for path, module in weights.items()
        if not all(is_finite(tensor.to(dtype)) for tensor in tensors_of(module))
    )
    return AdapterError(
        f"module {path!r}: the file's factors are so large that they or their products overflow "
        f"{dtype}"
    )


def _check_complete(binding: Binding, path: Path, *, partial: bool) -> None:
    """Check what was bound, after the modules: one that does not fit tells more than a key."""
    if binding.refused:
        raise binding.refused[0]
    if binding.unmatched and not partial:
        raise UnmatchedKeysError(binding.unmatched)
    if not binding.modules:
        raise AdapterFileError(f"{path}: holds no tensor that belongs to the base model")


def _version(kind: _Kind, digest: str) -> str:
    """Return the first hex digits of a SHA-256 over the files' digests and the options."""
    config = "" if kind.config is None else hashlib.sha256(kind.config).hexdigest()
    given, partial = kind.options.overrides, kind.options.partial
    text = f"{digest}/{config}/{given.scale}/{given.alpha}/{given.rank}/{partial}"
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]


def read_adapter(  # noqa: PLR0913  fixed by the interface: each is a word that callers know
    path: str | os.PathLike[str],
    spec: ModelSpec,
    adapter_id: str | None = None,
    *,
    partial: bool = False,
    scale_override: float | None = None,
    alpha: float | None = None,
    rank: int | None = None,
) -> Adapter:
    """Read an adapter and bind it to a base model; strict: every tensor is bound, or it raises.

    Args:
        path: A safetensors file, or a folder of PEFT.
        spec: The base's modules, such as ``attach(model).spec``.
        adapter_id: The adapter's id; by default the folder's name, or the file's without its
            suffix.
        partial: Whether keys that match no module are left out; a warning counts them, and names
            the first few.
        scale_override: The scale of every module, whatever the file says.
        alpha: Replaces, or supplies, the file's alpha.
        rank: Replaces, or supplies, the rank that alpha is divided by.

    Raises:
        MixError: The id is malformed.
        AdapterError: The files cannot be read, or do not fit the base; the message names the
            file, field, tensor or module.
    """
    overrides = ScaleOverrides(scale=scale_override, alpha=alpha, rank=rank)
    options = ReadOptions(overrides=overrides, partial=partial)
    return AdapterReader(spec).read(Path(path), adapter_id, options)

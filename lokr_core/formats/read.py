"""read_adapter: an adapter's files, checked against a base model and packed into one buffer."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lokr_core.adapter import Adapter, AdapterInfo, ScaleSource
from lokr_core.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
    UnmatchedKeysError,
    UnsupportedModuleError,
)
from lokr_core.formats.forms import DeltaForm, read_form
from lokr_core.formats.gain import PEFT_LEAF, read_gain
from lokr_core.formats.keys import Binding, ModuleTensors, bind, is_peft_style
from lokr_core.formats.peft import LEAVES, PeftConfig, parse_config
from lokr_core.formats.scale import (
    Overrides,
    Scale,
    TrainerNotes,
    caller_scale,
    config_scale,
    file_scale,
)
from lokr_core.formats.source import AdapterSource, default_id, open_source
from lokr_core.layout import pack, with_layout
from lokr_core.mix import AdapterRef, check_adapter_id
from lokr_core.spec import ModelSpec
from lokr_core.weights import ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Module:
    """One module of an adapter, read."""

    tensors: ModuleTensors
    form: DeltaForm
    scale: Scale
    weights: ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reader:
    """What the modules of one adapter have in common."""

    spec: ModelSpec
    config: PeftConfig | None
    notes: TrainerNotes
    is_peft: bool
    overrides: Overrides

    def module(self, tensors: ModuleTensors) -> _Module:
        """Read one module."""
        spec = tensors.spec
        if spec.refusal is not None:
            raise UnsupportedModuleError(spec.path, spec.refusal)
        if self.config is not None:
            _check_leaves(tensors, self.config)
        form = read_form(tensors, self.spec.compute_dtype)
        expected = (spec.out_features, spec.in_features)
        if form.delta.shape != expected:
            raise AdapterMismatchError(spec.path, found=form.delta.shape, expected=expected)
        scale = self._scale(tensors, form)
        delta = replace(form.delta, scale=scale.value)
        gain = read_gain(tensors, delta, self.spec.compute_dtype)
        weights = ModuleWeights(delta=delta, gain=gain)
        return _Module(tensors=tensors, form=form, scale=scale, weights=weights)

    def _scale(self, tensors: ModuleTensors, form: DeltaForm) -> Scale:
        if self.overrides.scale is not None:
            return Scale(value=self.overrides.scale, source="scale_override")
        if self.config is not None:
            return config_scale(tensors, form, self.config, self.overrides)
        if self.is_peft:
            return caller_scale(tensors, form, self.overrides)
        return file_scale(tensors, form, self.notes, self.overrides)


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
        partial: Whether keys that match no module are left out, and listed in the warnings.
        scale_override: The scale of every module, whatever the file says.
        alpha: Replaces, or supplies, the file's alpha.
        rank: Replaces, or supplies, the rank that alpha is divided by.

    Raises:
        MixError: The id is malformed.
        AdapterError: The files cannot be read, or do not fit the base; the message names the
            file, field, tensor or module.
    """
    path = Path(path)
    adapter_id = check_adapter_id(default_id(path) if adapter_id is None else adapter_id)
    overrides = Overrides(scale=scale_override, alpha=alpha, rank=rank)
    source = open_source(path)
    reader = _reader(source, spec, overrides)
    binding = bind(source.tensor_file.tensors, spec)
    modules = _read_modules(reader, binding, source.tensor_file.path, partial=partial)
    packed = pack({module.tensors.spec.path: module.weights for module in modules})
    packed = with_layout(packed, spec.shared_layout(packed.layout))
    version = source.version(f"{scale_override}/{alpha}/{rank}/{partial}")
    return Adapter(
        ref=AdapterRef(adapter_id=adapter_id, version=version),
        spec=spec,
        layout=packed.layout,
        buffer=packed.buffer,
        scales=packed.scales,
        info=_info(source, reader, modules, binding),
    )


def _read_modules(reader: _Reader, binding: Binding, path: Path, *, partial: bool) -> list[_Module]:
    """Read every module; a module that does not fit tells more than a key without a module."""
    modules = [reader.module(tensors) for tensors in binding.modules]
    if binding.unmatched and not partial:
        raise UnmatchedKeysError(binding.unmatched)
    if not modules:
        raise AdapterFileError(f"{path}: holds no tensor that belongs to the base model")
    return modules


def _reader(source: AdapterSource, spec: ModelSpec, overrides: Overrides) -> _Reader:
    config = None if source.config is None else parse_config(source.config)
    return _Reader(
        spec=spec,
        config=config,
        notes=TrainerNotes.of(source.tensor_file.metadata),
        is_peft=config is not None or is_peft_style(source.tensor_file.tensors),
        overrides=overrides,
    )


def _check_leaves(tensors: ModuleTensors, config: PeftConfig) -> None:
    """Check that the module holds what PEFT writes for this type, no more and no less."""
    for leaf, entry in tensors.by_leaf.items():
        if leaf not in LEAVES[config.peft_type]:
            problem = f"is no part of an adapter of peft_type {config.peft_type}"
            raise AdapterTensorError(entry.key, problem)
    if config.use_dora != (PEFT_LEAF in tensors.by_leaf):
        said, found = ("true", "no") if config.use_dora else ("false", "a")
        path = tensors.spec.path
        problem = f"is {said}, but module {path!r} has {found} {PEFT_LEAF}"
        raise AdapterConfigError("use_dora", problem)


def _info(
    source: AdapterSource, reader: _Reader, modules: Sequence[_Module], binding: Binding
) -> AdapterInfo:
    algorithms = {module.form.algorithm for module in modules}
    if any(module.weights.gain is not None for module in modules):
        algorithms.add("dora")
    scales = Counter(module.scale.source for module in modules)
    return AdapterInfo(
        format="peft" if reader.is_peft else "lycoris",
        algorithms=tuple(sorted(algorithms)),
        digest=source.tensor_file.digest,
        num_parameters=sum(
            entry.value.numel()
            for module in modules
            for leaf, entry in module.tensors.by_leaf.items()
            if leaf != "alpha"
        ),
        scales=tuple(ScaleSource(source=s, num_modules=n) for s, n in sorted(scales.items())),
        warnings=tuple(_warnings(reader, modules, binding)),
    )


def _warnings(reader: _Reader, modules: Sequence[_Module], binding: Binding) -> Iterator[str]:
    if binding.unmatched:
        keys = ", ".join(repr(key) for key in binding.unmatched)
        yield f"{len(binding.unmatched)} tensors match no module and were left out: {keys}"
    cautions = Counter(module.scale.caution for module in modules if module.scale.caution)
    for caution, num_modules in cautions.items():
        yield f"{num_modules} modules {caution}"
    if reader.config is not None:
        yield from reader.config.warnings([module.tensors.spec.path for module in modules])

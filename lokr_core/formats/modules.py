"""ModuleReader: what the tensors of one module do to it, with the scale that belongs to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lokr_core.errors import AdapterConfigError, AdapterError, AdapterTensorError
from lokr_core.formats.binding import FileModule
from lokr_core.formats.diffusers import config_for, metadata_configs
from lokr_core.formats.file import TensorFile
from lokr_core.formats.forms import MAGNITUDES, read_form
from lokr_core.formats.full import read_bias, read_residual, read_vector
from lokr_core.formats.gain import PEFT_LEAF, GainContext, read_gain
from lokr_core.formats.names import is_peft_style
from lokr_core.formats.notes import TrainerNotes
from lokr_core.formats.parts import DeltaForm, FormContext
from lokr_core.formats.peft import LEAVES, PeftConfig, parse_config
from lokr_core.formats.place import Change
from lokr_core.formats.replaced import (
    REPLACED_LEAVES,
    file_weight,
    read_replaced,
    with_replaced,
)
from lokr_core.formats.scale import (
    Scale,
    ScaleOverrides,
    caller_scale,
    config_scale,
    file_scale,
    full_delta_scale,
    stored_scale,
)
from lokr_core.formats.tensors import WeightShape, trained_path
from lokr_core.spec import ModelSpec

_NEED_FACTORS = ("alpha", "scale", *sorted(MAGNITUDES))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadModule:
    """One module of a file, read."""

    module: FileModule
    name: str  # as the base has it, if it is one of its modules, or as the file has it
    form: DeltaForm | None  # None if it has no delta of its weight
    scale: Scale | None  # of the form
    change: Change
    algorithms: tuple[str, ...]
    notes: tuple[str, ...]  # what to tell a careful user, "N modules" before it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleReader:
    """What the modules of one adapter have in common."""

    spec: ModelSpec
    config: PeftConfig | None
    notes: TrainerNotes
    is_peft: bool
    overrides: ScaleOverrides
    component_configs: Mapping[str, PeftConfig] = field(default_factory=dict)  # without config

    @classmethod
    def of(
        cls, spec: ModelSpec, file: TensorFile, config: bytes | None, overrides: ScaleOverrides
    ) -> "ModuleReader":
        """Return the reader of a file's modules.

        Args:
            spec: The modules of the base.
            file: The tensor file.
            config: PEFT's configuration beside it.
            overrides: What the caller says in place of both.

        Raises:
            AdapterConfigError: The configuration is malformed, or asks for what is not served.
        """
        parsed = None if config is None else parse_config(config)
        return cls(
            spec=spec,
            config=parsed,
            notes=TrainerNotes.of(file.metadata),
            is_peft=parsed is not None or is_peft_style(file.tensors),
            overrides=overrides,
            component_configs=metadata_configs(file.metadata),
        )

    def read(self, module: FileModule) -> ReadModule:
        """Read one module.

        Raises:
            AdapterError: The tensors cannot be served, or do not fit the module.
        """
        shape = WeightShape.of(module)
        replaced = read_replaced(module, shape)
        shape = replace(shape, out_features=replaced.out_features or shape.out_features)
        dtype = self.spec.compute_dtype
        form = read_form(module, FormContext(shape=shape, dtype=dtype, is_peft=self.is_peft))
        if form is None:
            _check_need_no_factors(module)
        config = self.config_of(module)
        if config is not None:
            _check_peft(module, config, has_delta=form is not None)
        scale = None if form is None else self._scale(module, form, config)
        if scale is not None:
            _check_usable(scale, shape, dtype)
        change = self._deltas(module, shape, form, scale)
        if MAGNITUDES & module.by_leaf.keys():
            change = self._with_gain(module, change, shape, replaced.base_weight)
        whole = with_replaced(module, change, replaced, dtype)
        return ReadModule(
            module=module,
            name=shape.name,
            form=form,
            scale=scale,
            change=whole,
            algorithms=tuple(_algorithms(form, change, whole)),
            notes=(*self._cautions(module, scale, change), *replaced.notes),
        )

    def config_of(self, module: FileModule) -> PeftConfig | None:
        """Return PEFT's configuration of a module, if there is one."""
        if self.config is not None:
            return self.config
        return config_for(self.component_configs, trained_path(module))

    def _scale(self, module: FileModule, form: DeltaForm, config: PeftConfig | None) -> Scale:
        if self.overrides.scale is not None and form.has_ratio:
            return Scale(value=self.overrides.scale, source="scale_override")
        if config is not None:
            return config_scale(module, form, config, self.overrides)
        if "scale" in module.by_leaf and not self.overrides.has_ratio:
            return stored_scale(module.by_leaf["scale"])
        if not form.has_ratio:
            return full_delta_scale(module, self.overrides)
        if self.is_peft:
            return caller_scale(module, form, self.overrides)
        return file_scale(module, form, self.notes, self.overrides)

    def _with_gain(
        self, module: FileModule, change: Change, shape: WeightShape, base_weight: Tensor | None
    ) -> Change:
        """Return a change with the gain of its magnitude, over the base's weight if not its own."""
        weight = file_weight(module) if base_weight is None else base_weight
        context = GainContext(shape=shape, weight=weight, dtype=self.spec.compute_dtype)
        return replace(change, gain=read_gain(module, change.deltas, context))

    def _cautions(self, module: FileModule, scale: Scale | None, change: Change) -> Iterator[str]:
        """Yield what to tell of the scale; norms and biases alone are whole differences too."""
        if scale is None and not change.is_empty:
            scale = full_delta_scale(module, self.overrides)
        if scale is not None and scale.caution is not None:
            yield scale.caution

    def _deltas(
        self, module: FileModule, shape: WeightShape, form: DeltaForm | None, scale: Scale | None
    ) -> Change:
        """Return what is added to the parameters of a module."""
        value = 1.0 if scale is None else scale.value
        dtype = self.spec.compute_dtype
        delta = None if form is None else replace(form.delta, scale=value)
        deltas = (delta, read_residual(module, shape, dtype))
        return Change(
            deltas=tuple(delta for delta in deltas if delta is not None),
            vector=read_vector(module, shape),
            bias=read_bias(module, shape, value, dtype),
        )


def _algorithms(form: DeltaForm | None, change: Change, whole: Change) -> Iterator[str]:
    """Yield the names of all that is done to a module."""
    if form is not None:
        yield form.algorithm
    if change.gain is not None:
        yield "dora"
    if change.vector is not None:
        yield "norm"
    elif change.bias is not None and form is None:
        yield "bias"
    if whole.replacement is not None:
        yield "replacement"


def _check_need_no_factors(module: FileModule) -> None:
    """Check that nothing is left of a module whose factors the file does not hold."""
    for leaf in _NEED_FACTORS:
        if leaf in module.by_leaf:
            problem = "stands alone: the file has no factors for its module"
            raise AdapterTensorError(module.by_leaf[leaf].key, problem)


def _check_usable(scale: Scale, shape: WeightShape, dtype: torch.dtype) -> None:
    """Check that a scale is no infinity where it is computed with."""
    if abs(scale.value) > torch.finfo(dtype).max:
        raise AdapterError(
            f"module {shape.name!r}: its scale of {scale.value:g} overflows {dtype}; it is "
            f"{scale.source}"
        )


def _check_peft(module: FileModule, config: PeftConfig, *, has_delta: bool) -> None:
    """Check that the module holds what PEFT writes for this type, no more and no less."""
    for leaf, entry in module.by_leaf.items():
        if leaf not in LEAVES[config.peft_type] | REPLACED_LEAVES:
            problem = f"is no part of an adapter of peft_type {config.peft_type}"
            raise AdapterTensorError(entry.key, problem)
    if has_delta and config.use_dora != (PEFT_LEAF in module.by_leaf):
        said, found = ("true", "no") if config.use_dora else ("false", "a")
        problem = f"is {said}, but module {trained_path(module)!r} has {found} {PEFT_LEAF}"
        raise AdapterConfigError("use_dora", problem)

"""ModuleReader: what the tensors of one module do to it, with the scale that belongs to them."""

from dataclasses import dataclass, replace

from lokr_core.errors import (
    AdapterConfigError,
    AdapterMismatchError,
    AdapterTensorError,
    UnsupportedModuleError,
)
from lokr_core.formats.forms import DeltaForm, read_form
from lokr_core.formats.gain import PEFT_LEAF, read_gain
from lokr_core.formats.keys import ModuleTensors
from lokr_core.formats.peft import LEAVES, PeftConfig
from lokr_core.formats.scale import (
    Scale,
    ScaleOverrides,
    TrainerNotes,
    caller_scale,
    config_scale,
    file_scale,
)
from lokr_core.spec import ModelSpec
from lokr_core.weights import ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadModule:
    """One module of an adapter, read."""

    tensors: ModuleTensors
    form: DeltaForm
    scale: Scale
    weights: ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleReader:
    """What the modules of one adapter have in common."""

    spec: ModelSpec
    config: PeftConfig | None
    notes: TrainerNotes
    is_peft: bool
    overrides: ScaleOverrides

    def read(self, tensors: ModuleTensors) -> ReadModule:
        """Read one module.

        Raises:
            AdapterError: The tensors cannot be served, or do not fit the module.
        """
        spec = tensors.spec
        if spec.refusal is not None:
            raise UnsupportedModuleError(spec.path, spec.refusal)
        if not spec.kind.is_linear:
            raise UnsupportedModuleError(
                spec.path, f"a change of its {spec.kind.value} is not served"
            )
        if self.config is not None:
            _check_leaves(tensors, self.config)
        form = read_form(tensors, self.spec.compute_dtype)
        if form.delta.shape != spec.shape:
            raise AdapterMismatchError(spec.path, found=form.delta.shape, expected=spec.shape)
        scale = self._scale(tensors, form)
        delta = replace(form.delta, scale=scale.value)
        gain = read_gain(tensors, delta, self.spec.compute_dtype)
        weights = ModuleWeights.of(delta, gain)
        return ReadModule(tensors=tensors, form=form, scale=scale, weights=weights)

    def _scale(self, tensors: ModuleTensors, form: DeltaForm) -> Scale:
        if self.overrides.scale is not None:
            return Scale(value=self.overrides.scale, source="scale_override")
        if self.config is not None:
            return config_scale(tensors, form, self.config, self.overrides)
        if self.is_peft:
            return caller_scale(tensors, form, self.overrides)
        return file_scale(tensors, form, self.notes, self.overrides)


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

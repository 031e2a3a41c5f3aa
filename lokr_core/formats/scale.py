"""Scale: the one place that makes a module's scale out of alpha, rank and what the file tells."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lokr_core.errors import AdapterConfigError, AdapterTensorError
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.locate import CONFIG_NAME
from lokr_core.formats.notes import TrainerNotes
from lokr_core.formats.parts import DeltaForm
from lokr_core.formats.peft import PeftConfig
from lokr_core.formats.tensors import trained_path
from lokr_core.given import finite_number, whole_number

MAX_RANK = (1 << 32) - 1  # what the wire holds; no factor has as many rows
DIM_TOLERANCE = 0.01  # alpha is stored in half precision: 10000 becomes 9984


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The scale of one module, and where it comes from."""

    value: float
    source: str
    caution: str | None = None  # what to tell a careful user, "N modules" before it


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Turn what is wrong with a number into an error that names its field."""
    try:
        yield
    except ValueError as error:
        raise AdapterConfigError(field, str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOverrides:
    """What the caller says in place of the file."""

    scale: float | None = None
    alpha: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        """Check that the numbers are usable; equal ones become one, as versions follow from them.

        Raises:
            AdapterConfigError: One is not.
        """
        with _naming("scale_override"):
            scale = None if self.scale is None else finite_number(self.scale)
        with _naming("alpha"):
            alpha = None if self.alpha is None else finite_number(self.alpha)
        with _naming("rank"):
            rank = None if self.rank is None else whole_number(self.rank, most=MAX_RANK)
        for field, value in (("scale", scale), ("alpha", alpha), ("rank", rank)):
            object.__setattr__(self, field, value)

    @property
    def has_ratio(self) -> bool:
        """Whether alpha or rank is given."""
        return self.alpha is not None or self.rank is not None

    def ratio_source(self, source: str) -> str:
        """Return ``source``, and which of alpha and rank are the caller's."""
        given = [name for name, v in (("alpha", self.alpha), ("rank", self.rank)) if v is not None]
        return f"{source}, {' and '.join(given)} given by the caller" if given else source


def config_scale(
    module: FileModule, form: DeltaForm, config: PeftConfig, overrides: ScaleOverrides
) -> Scale:
    """Return the scale that PEFT applies: alpha / r always, even when both factors are full.

    Raises:
        AdapterConfigError: The configuration's rank is not that of the tensors.
    """
    path = config.path_of(trained_path(module))
    alpha = overrides.alpha if overrides.alpha is not None else config.alpha_of(path)
    rank = overrides.rank if overrides.rank is not None else config.rank_of(path)
    if overrides.rank is None and form.rank not in (None, rank):
        problem = f"is {rank} for module {path!r}, but the file's tensors have rank {form.rank}"
        raise AdapterConfigError("r", problem)
    if config.is_unscaled and not overrides.has_ratio:
        return Scale(
            value=1.0,
            source="1: peft before 0.14 applied no scale to LoKr",
            caution="are left at scale 1, as peft before 0.14 trained them whatever alpha says; "
            "later peft applies alpha/r to them",
        )
    if config.use_rslora:
        source = overrides.ratio_source(f"alpha/sqrt(r) of {config.source}")
        return Scale(value=alpha / math.sqrt(rank), source=source)
    return Scale(value=alpha / rank, source=overrides.ratio_source(f"alpha/r of {config.source}"))


def caller_scale(module: FileModule, form: DeltaForm, overrides: ScaleOverrides) -> Scale:
    """Return the scale of PEFT's tensors without PEFT's configuration, which only a caller knows.

    Raises:
        AdapterConfigError: The caller gave too little.
    """
    rank = overrides.rank if overrides.rank is not None else form.rank
    if overrides.alpha is None or rank is None:
        key = next(iter(module.by_leaf.values())).key
        raise AdapterConfigError(
            CONFIG_NAME,
            f"is missing, so that the scale of PEFT's tensors such as {key!r} cannot be known; "
            "give alpha and rank, or scale_override",
        )
    return Scale(value=overrides.alpha / rank, source=overrides.ratio_source("alpha/rank"))


def stored_scale(entry: NamedTensor) -> Scale:
    """Return the scale that a file gives as such, which wins over its alpha.

    Raises:
        AdapterTensorError: It is not one finite number.
    """
    value = _number(entry)
    if not math.isfinite(value):
        raise AdapterTensorError(entry.key, f"is {value}, which is no scale; give scale_override")
    return Scale(value=value, source="scale of the file")


def full_delta_scale(module: FileModule, overrides: ScaleOverrides) -> Scale:
    """Return the scale of a whole difference, which has none: neither file nor caller gives one."""
    is_given = overrides.scale is not None or overrides.has_ratio
    caution = "are whole differences, to which no scale, alpha or rank applies"
    is_unused = is_given or "alpha" in module.by_leaf
    source = "1: a whole difference has no scale"
    return Scale(value=1.0, source=source, caution=caution if is_unused else None)


def file_scale(
    module: FileModule, form: DeltaForm, notes: TrainerNotes, overrides: ScaleOverrides
) -> Scale:
    """Return the scale of the LyCORIS family: alpha / rank, but 1 when both factors are full.

    Raises:
        AdapterTensorError: The file's alpha is no finite number beside a low-rank factor.
        AdapterConfigError: The caller gave a rank, but there is no alpha.
    """
    stored = module.by_leaf.get("alpha")
    alpha = overrides.alpha
    if alpha is None and stored is not None:
        alpha = _number(stored)
    if form.rank is None and overrides.rank is None:
        dim = notes.dim_of(module.targets[0].spec.kernel)
        return _full_scale(alpha, dim, notes, overrides)
    if alpha is None:
        return _scale_without_alpha(module, overrides)
    if not math.isfinite(alpha):
        assert stored is not None
        problem = f"is {alpha}, which gives no scale; give alpha or scale_override"
        raise AdapterTensorError(stored.key, problem)
    rank = overrides.rank if overrides.rank is not None else form.rank
    assert rank is not None
    caution = _ratio_caution(alpha, form, notes, overrides)
    source = overrides.ratio_source("alpha/rank of the file")
    return Scale(value=alpha / rank, source=source, caution=caution)


def _full_scale(
    alpha: float | None, dim: float | None, notes: TrainerNotes, overrides: ScaleOverrides
) -> Scale:
    """Return the scale of two full factors, whose alpha is a filler unless a dim proves it real."""
    caution = None
    if alpha is not None and dim is not None and _is_other(alpha, dim):
        value = alpha / dim
        if not notes.has_own_dims:
            return Scale(
                value=value,
                source=overrides.ratio_source("alpha/dim of the file's metadata"),
                caution=f"have two full factors but were trained at scale {value:g} by the file's "
                "metadata; other programs apply 1, and scale_override decides",
            )
        caution = (
            "have two full factors and an alpha that is not the dimension in the file's metadata, "
            "whose preset may give modules other ones; they are left at scale 1, and "
            "scale_override decides"
        )
    if overrides.alpha is not None:
        caution = (
            "have two full factors, so that alpha is not used; give rank too, or scale_override"
        )
    return Scale(value=1.0, source="1: both factors are full", caution=caution)


def _is_other(alpha: float, dim: float) -> bool:
    """Return whether an alpha is a real one and not the dimension, by more than it is rounded."""
    return math.isfinite(alpha) and alpha > 0 and abs(alpha / dim - 1) > DIM_TOLERANCE


def _scale_without_alpha(module: FileModule, overrides: ScaleOverrides) -> Scale:
    if overrides.rank is not None:
        raise AdapterConfigError("rank", "is given, but the file has no alpha; give alpha too")
    up = module.by_leaf.get("lora_up")
    if up is not None and up.key.endswith(".up.weight"):
        return Scale(value=1.0, source="1: diffusers before PEFT had no alpha")
    return Scale(value=1.0, source="1: no alpha", caution="have no alpha and are left at scale 1")


def _ratio_caution(
    alpha: float, form: DeltaForm, notes: TrainerNotes, overrides: ScaleOverrides
) -> str | None:
    if alpha == 0:
        return "have alpha 0 and so do nothing; give alpha or scale_override if that is wrong"
    if notes.is_bypass and form.algorithm == "lokr" and not overrides.has_ratio:
        return (
            "were trained in LyCORIS's bypass mode, which ignored the scale before LyCORIS 4; "
            "if they look too weak or too strong, give scale_override=1"
        )
    rank = form.rank or 1
    if alpha == notes.rs_alpha and rank > 1 and not overrides.has_ratio:
        return (
            "were trained with rs_lora by a LyCORIS that saved alpha as it was set, so that "
            f"alpha/rank is too weak by the root of the rank; give scale_override="
            f"{alpha / math.sqrt(rank):g} if they look so"
        )
    return None


def _number(entry: NamedTensor) -> float:
    """Return an alpha, which may be of any dtype and shape as long as it is one number."""
    if entry.value.numel() != 1 or entry.value.dtype is torch.bool:
        raise AdapterTensorError(entry.key, f"is {tuple(entry.value.shape)}, not one number")
    return float(entry.value.item())

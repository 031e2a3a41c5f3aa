"""The fields of PEFT's configuration that scales and factor shapes follow from."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.factor import KroneckerShape, decompose_factor
from lokr_core.formats.convert.modules import SourceModule
from lokr_core.formats.convert.scale import alpha_for, rank_of
from lokr_core.spec import ModuleKind

Json = dict[str, object]
Value = TypeVar("Value", bound=Hashable)

EXACT_WHOLE = 2**53  # below it a float64 holds every whole number
_TYPES = {"lokr": "LOKR", "hada": "LOHA", "lora": "LORA"}


def peft_type(module: SourceModule) -> str:
    """Return PEFT's name of a module's algorithm.

    Raises:
        ConversionError: The module has no factors, or those of several algorithms.
    """
    kinds = {_TYPES[leaf[:4]] for leaf in module.leaves if leaf[:4] in _TYPES}
    if len(kinds) != 1:
        raise ConversionError(module.path, "has no factors that PEFT knows")
    return kinds.pop()


def scale_fields(modules: Sequence[SourceModule]) -> Json:
    """Return the fields for modules of one algorithm.

    Raises:
        ConversionError: PEFT would make factors of other shapes.
    """
    match peft_type(modules[0]):
        case "LOKR":
            return _lokr_fields(modules)
        case "LOHA":
            cores = {m.path: m.has("hada_t1") for m in modules if max((1, *m.spec.kernel)) > 1}
            return {
                **_patterns(modules, [_loha_rank(module) for module in modules], "alpha"),
                "use_effective_conv2d": _same(cores, "has or lacks a Tucker core") or False,
            }
        case _:
            return _lora_fields(modules)


def _lokr_fields(modules: Sequence[SourceModule]) -> Json:
    shapes = [KroneckerShape.of(module) for module in modules]
    both = any(shape.w1_rank is not None for shape in shapes)
    default = _commonest([r for s in shapes if (r := s.w2_rank or s.w1_rank)] or [1])
    ranks = [shape.rank(decomposes_both=both, default=default) for shape in shapes]
    cores = {shape.path: shape.core for shape in shapes if shape.core is not None}
    return {
        **_patterns(modules, ranks, "alpha"),
        "decompose_both": both,
        "decompose_factor": decompose_factor(shapes),
        "use_effective_conv2d": _same(cores, "has or lacks a Tucker core") or False,
        "rank_dropout_scale": False,  # peft before 0.14 did not write it, and applied no scale
    }


def _loha_rank(module: SourceModule) -> int:
    ranks = {module.leaves[f"hada_w{side}_b"].shape[0] for side in (1, 2)}
    if len(ranks) > 1:
        raise ConversionError(module.path, f"PEFT has one rank for both halves, not {ranks}")
    return ranks.pop()


def _lora_fields(modules: Sequence[SourceModule]) -> Json:
    dora = {module.path: module.has("lora_magnitude_vector") for module in modules}
    biases = {module.path: module.has("lora_up_bias") for module in modules}
    conv1ds = {module.path: module.spec.kind is ModuleKind.CONV1D for module in modules}
    return {
        **_patterns(modules, [rank_of(module.leaves) or 1 for module in modules], "lora_alpha"),
        "use_rslora": False,
        "use_dora": _same(dora, "has or lacks a DoRA magnitude"),
        "lora_bias": _same(biases, "has or lacks a bias"),
        "fan_in_fan_out": any(conv1ds.values()),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }


def _patterns(modules: Sequence[SourceModule], ranks: Sequence[int], alpha_field: str) -> Json:
    """Return r and alpha, and patterns for the modules that have others than most."""
    alphas = [alpha_for(module.scale, rank) for module, rank in zip(modules, ranks, strict=True)]
    names = [f"^{re.escape(module.path)}" for module in modules]  # the whole path, by PEFT's rule
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "r": rank,
        alpha_field: _short(alpha),
        "rank_pattern": {n: r for n, r in zip(names, ranks, strict=True) if r != rank},
        "alpha_pattern": {n: _short(a) for n, a in zip(names, alphas, strict=True) if a != alpha},
    }


def _short(alpha: float) -> int | float:
    """Return a whole alpha as PEFT has it, without a point; a larger one would be all digits."""
    is_short = alpha.is_integer() and abs(alpha) < EXACT_WHOLE
    return int(alpha) if is_short else alpha


def _commonest(values: Sequence[Value]) -> Value:
    return Counter(values).most_common(1)[0][0]


def _same(flags: Mapping[str, bool], what: str) -> bool:
    """Return what is true of all modules, as PEFT has one flag for a whole file."""
    values = set(flags.values())
    if len(values) > 1:
        common = _commonest(list(flags.values()))
        odd = next(path for path, flag in flags.items() if flag != common)
        raise ConversionError(odd, f"{what}, unlike others; PEFT has one setting for all of a file")
    return values.pop() if values else False

"""PeftConfig: what PEFT's adapter_config.json says that changes the mathematics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lokr_core.errors import AdapterConfigError, listed, quoted
from lokr_core.formats import loha, lokr, lora
from lokr_core.formats.locate import CONFIG_NAME
from lokr_core.formats.patterns import Pattern, PatternError, StepBudget, Subject
from lokr_core.formats.strict_json import parse_json
from lokr_core.formats.targets import Targets

MAX_SAVED = 200  # names of modules_to_save that are looked for
Number = TypeVar("Number", int, float)

LEAVES: Mapping[str, frozenset[str]] = {
    "LOKR": lokr.LEAVES,
    "LOHA": loha.LEAVES,
    "LORA": lora.LEAVES | lora.EMBEDDING_LEAVES | {"lora_magnitude_vector"},
}
_BIASES = ("none", "all", "lora_only")  # which biases were trained; the file holds those that were

# What changes the result and is not served: refused unless it is unset.
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_UNSET: tuple[object, ...] = (None, False, "", "none", [], {})
# Any other way to start changes the base weights as well, which the file does not hold.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "lycoris", "mica")
# What decides how an adapter was made or trained, or says again what its tensors show.
_WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "decompose_both",
        "decompose_factor",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "module_dropout",
        "peft_version",
        "qalora_group_size",
        "rank_dropout",
        "rank_dropout_scale",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_effective_conv2d",
    ]
)
_READ = frozenset(
    [
        "peft_type",
        "r",
        "alpha",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
        "modules_to_save",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """The fields that a scale and a gain depend on."""

    source: str  # where they stand
    component: str  # of a pipeline, whose paths they are of; "" if it is one model
    peft_type: str
    r: int
    alpha: float
    rank_pattern: Mapping[Pattern, int]
    alpha_pattern: Mapping[Pattern, float]
    budget: StepBudget
    use_rslora: bool
    use_dora: bool
    is_unscaled: bool  # a LoKr of peft before 0.14, which applied no scale
    targets: Targets
    modules_to_save: tuple[str, ...]
    unknown_fields: tuple[str, ...]

    def path_of(self, path: str) -> str:
        """Return a module's path in the component that was trained."""
        return path.removeprefix(f"{self.component}.") if self.component else path

    def rank_of(self, path: str) -> int:
        """Return r of a module."""
        subject = Subject(text=path, budget=self.budget)
        return _first_match("rank_pattern", self.rank_pattern, subject, self.r)

    def alpha_of(self, path: str) -> float:
        """Return alpha of a module."""
        subject = Subject(text=path, budget=self.budget)
        return _first_match("alpha_pattern", self.alpha_pattern, subject, self.alpha)

    def warnings(self, adapted: Sequence[str], held: Sequence[str]) -> Iterator[str]:
        """Yield what is odd about a file.

        Args:
            adapted: The paths of the modules that it has factors for.
            held: Those of all modules that it has tensors for.
        """
        yield from self.targets.warnings(adapted)
        yield from self._unsaved(held)
        if self.unknown_fields:
            fields = listed(self.unknown_fields)
            yield f"not known here and not regarded, of {self.source}: {fields}"

    def _unsaved(self, held: Sequence[str]) -> Iterator[str]:
        """Yield the modules to be saved of which a file holds nothing."""
        names = self.modules_to_save
        if len(names) > MAX_SAVED:
            yield f"the {len(names)} names of modules_to_save were not held against the file"
            return
        text = "\n".join(f".{path}." for path in held)
        for name in names:
            if f".{name}." not in text:
                yield f"{quoted(name)} of modules_to_save has no tensors in the file"


def _first_match(
    field: str, patterns: Mapping[Pattern, Number], subject: Subject, default: Number
) -> Number:
    """Return the value of the first pattern that matches, by PEFT's own rule."""
    for pattern, value in patterns.items():
        try:
            if pattern.matches_suffix(subject):
                return value
        except PatternError as error:
            problem = f"{quoted(pattern.source)} {error}"
            raise AdapterConfigError(field, problem) from error
    return default


def parse_config(text: bytes) -> PeftConfig:
    """Parse an adapter_config.json.

    Raises:
        AdapterConfigError: It is malformed, or sets a field whose effect is not served.
    """
    return config_of(_parse_object(text), CONFIG_NAME)


def config_of(fields: Mapping[str, object], source: str, component: str = "") -> PeftConfig:
    """Return what the fields of a configuration say.

    Args:
        fields: Its fields.
        source: Where they stand.
        component: What the paths of the modules that it is for start with.

    Raises:
        AdapterConfigError: One is malformed, or has an effect that is not served.
    """
    peft_type = fields.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in LEAVES:
        raise AdapterConfigError(
            "peft_type", f"{quoted(peft_type)} is not one of {', '.join(LEAVES)}"
        )
    _refuse_unserved(fields)
    if fields.get("bias", "none") not in _BIASES:
        raise AdapterConfigError("bias", f"{quoted(fields['bias'])} is not one of {_BIASES}")
    is_lora = peft_type == "LORA"
    alpha_field = "lora_alpha" if is_lora else "alpha"
    return PeftConfig(
        source=source,
        component=component,
        peft_type=peft_type,
        r=_rank("r", fields.get("r", 8)),  # 8 is PEFT's default for all of them
        alpha=_finite(alpha_field, fields.get(alpha_field, 8)),
        rank_pattern={k: _rank("rank_pattern", v) for k, v in _patterns(fields, "rank_pattern")},
        alpha_pattern={
            k: _finite("alpha_pattern", v) for k, v in _patterns(fields, "alpha_pattern")
        },
        budget=StepBudget(),
        use_rslora=_flag(fields, "use_rslora", allowed=is_lora),
        use_dora=_flag(fields, "use_dora", allowed=is_lora),
        is_unscaled=peft_type == "LOKR" and "rank_dropout_scale" not in fields,
        targets=Targets.of(fields),
        modules_to_save=_names(fields, "modules_to_save"),
        unknown_fields=_unknown(fields),
    )


def _parse_object(text: bytes) -> dict[str, object]:
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise AdapterConfigError(CONFIG_NAME, str(error)) from error
    if not isinstance(fields, dict):
        raise AdapterConfigError(CONFIG_NAME, "is no JSON object")
    return fields


def _refuse_unserved(fields: Mapping[str, object]) -> None:
    for name in _REFUSED:
        if fields.get(name) not in _UNSET:
            raise AdapterConfigError(name, f"{quoted(fields[name])} is not served")
    start = fields.get("init_lora_weights", True)
    if start not in _PLAIN_INITS:
        raise AdapterConfigError(
            "init_lora_weights",
            f"{quoted(start)} changes the base weights too; save the adapter with "
            "path_initial_model_for_weight_conversion",
        )


def _rank(field: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise AdapterConfigError(field, f"{quoted(value)} is not a positive whole number")
    return value


def _finite(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterConfigError(field, f"{quoted(value)} is not a finite number")
    return float(value)


def _patterns(fields: Mapping[str, object], field: str) -> Iterator[tuple[Pattern, object]]:
    patterns = fields.get(field) or {}
    if not isinstance(patterns, dict):
        raise AdapterConfigError(field, f"{quoted(patterns)} is no JSON object")
    for source, value in patterns.items():
        try:
            yield Pattern.parse(source), value
        except PatternError as error:
            raise AdapterConfigError(field, f"{quoted(source)} is no pattern: {error}") from error


def _names(fields: Mapping[str, object], field: str) -> tuple[str, ...]:
    value = fields.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterConfigError(field, f"{quoted(value)} is no list of names")
    return tuple(value)


def _flag(fields: Mapping[str, object], field: str, *, allowed: bool) -> bool:
    value = fields.get(field, False)
    if not isinstance(value, bool):
        raise AdapterConfigError(field, f"{quoted(value)} is not true or false")
    if value and not allowed:
        raise AdapterConfigError(field, f"is not a field of {fields['peft_type']}")
    return value


def _unknown(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the fields that are set but that no peft known here has."""
    known = _READ | _WITHOUT_EFFECT | set(_REFUSED)
    return tuple(name for name in fields if name not in known and fields[name] not in _UNSET)

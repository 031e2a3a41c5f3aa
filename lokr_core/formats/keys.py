"""Keys of a file: which module of the base each tensor belongs to, and which part of it it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.spec import ModelSpec, ModuleSpec

PEFT_WRAPPER = "base_model.model."
LYCORIS_PREFIX = "lycoris_"

_LEAF = re.compile(
    r"(?P<module>.+?)\."
    r"(?P<leaf>"
    r"lokr_w[12](?:_[ab])?|hada_w[12]_[ab]|lora_(?:up|down|A|B)(?=(?:\.default)?\.weight$)"
    r"|lora_magnitude_vector|dora_scale|alpha)"
    r"(?:\.default)?(?:\.weight)?"
)
_UNSERVED = [
    (re.compile(rf".+?\.(?:{leaf})"), problem)
    for leaf, problem in (
        (
            r"lokr_t[12]|hada_t[12]|lora_mid\.weight",
            "is a Tucker core, which only convolutions have",
        ),
        (r"lora_embedding_[AB](?:\..+)?", "changes an embedding"),
        (r"lora_[AB](?:\.default)?\.bias|base_layer\.bias|diff_b", "changes a bias"),
        (r"base_layer\.weight|modules_to_save\..+|set_weight", "replaces a weight"),
        (r"diff|bias_(?:indices|values|size)|reshape_weight", "is a delta without factors"),
        (r"w_norm|b_norm", "changes a norm"),
        (
            r"oft_blocks|rescale|on_input|[ab][12]\.weight|bm\.weight|[pq]_layer\.weight|lambda_layer",
            "belongs to an algorithm other than LoKr, LoHa and LoRA",
        ),
    )
]
_PARAMETER = re.compile(r"(?P<module>.+)\.(?:weight|bias)")
_ONE_NAME = {"lora_A": "lora_down", "lora_B": "lora_up"}  # PEFT's names: kohya's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor with the key that it has in the file."""

    key: str
    value: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleTensors:
    """The tensors of a file that belong to one module, by leaf such as ``lokr_w1``."""

    spec: ModuleSpec
    by_leaf: Mapping[str, NamedTensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binding:
    """The tensors of a file, module by module in the order of the file."""

    modules: Sequence[ModuleTensors]
    unmatched: tuple[str, ...]


@dataclass(slots=True)
class _ModuleNames:
    """Finds a module by the spelling of a file."""

    spec: ModelSpec
    flat: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.spec.modules:
            self.flat.setdefault(path.replace(".", "_"), []).append(path)

    def find(self, key: str, name: str) -> str | None:
        """Return the path that ``name`` stands for, or None if the base has no such module."""
        name = name.removeprefix(PEFT_WRAPPER)
        if name in self.spec.modules:
            return name
        if not name.startswith(LYCORIS_PREFIX):
            return None
        paths = self.flat.get(name.removeprefix(LYCORIS_PREFIX), [])
        if len(paths) > 1:
            raise AdapterTensorError(key, f"may mean any of the modules {', '.join(paths)}")
        return paths[0] if paths else None


def bind(tensors: Mapping[str, Tensor], spec: ModelSpec) -> Binding:
    """Find the module of the base that each tensor belongs to.

    Modules are found by flattening the base's own paths: flattening cannot be undone.

    Args:
        tensors: The tensors of a file, by key.
        spec: The base's modules.

    Raises:
        AdapterTensorError: A tensor does what is not served, or two are the same factor.
    """
    names = _ModuleNames(spec)
    found: dict[str, dict[str, NamedTensor]] = {}
    unmatched = []
    for key, value in tensors.items():
        match = _LEAF.fullmatch(key)
        path = names.find(key, match["module"]) if match else None
        if match is None or path is None:
            _refuse_unserved(key, names)
            unmatched.append(key)
            continue
        leaf = _ONE_NAME.get(match["leaf"], match["leaf"])
        by_leaf = found.setdefault(path, {})
        if leaf in by_leaf:
            raise AdapterTensorError(key, f"gives the same factor as {by_leaf[leaf].key!r}")
        by_leaf[leaf] = NamedTensor(key=key, value=value)
    modules = [ModuleTensors(spec=spec.modules[p], by_leaf=leaves) for p, leaves in found.items()]
    return Binding(modules=modules, unmatched=tuple(unmatched))


def _refuse_unserved(key: str, names: _ModuleNames) -> None:
    """Refuse a tensor that changes a module of the base in a way that is not served."""
    for pattern, problem in _UNSERVED:
        if pattern.fullmatch(key):
            raise AdapterTensorError(key, f"{problem}; that is not served")
    parameter = _PARAMETER.fullmatch(key)
    if parameter and names.find(key, parameter["module"]) is not None:
        raise AdapterTensorError(key, "replaces a parameter of the base; that is not served")


def is_peft_style(keys: Iterable[str]) -> bool:
    """Return whether keys are those of PEFT, which keeps the scale out of the file.

    LyCORIS and its relatives keep an alpha in the file or flatten the module's path; PEFT does
    neither, and never writes ``lora_up``.
    """
    return not any(
        key.startswith(LYCORIS_PREFIX) or key.endswith(".alpha") or ".lora_up." in key
        for key in keys
    )

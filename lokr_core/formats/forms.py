"""read_form: what the factors of a module amount to, whichever algorithm they come from."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from lokr_core.errors import AdapterTensorError, UnsupportedModuleError
from lokr_core.formats import full, loha, lokr, lora
from lokr_core.formats.binding import FileModule
from lokr_core.formats.parts import DeltaForm, FormContext
from lokr_core.formats.replaced import REPLACED_LEAVES
from lokr_core.spec import ModuleKind

MAGNITUDES = frozenset({"dora_scale", "lora_magnitude_vector"})
BESIDE_FACTORS = REPLACED_LEAVES | MAGNITUDES | {"alpha", "scale", "diff_b", "b_norm"}

_Reader = Callable[[FileModule, FormContext], DeltaForm]
_READERS: Mapping[str, _Reader] = MappingProxyType(
    {
        "lokr": lokr.read_lokr,
        "loha": loha.read_loha,
        "lora": lora.read_lora,
        "embedding": lora.read_embedding,
        "full": full.read_full,
    }
)
_ALGORITHMS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(lokr.LEAVES, "lokr")
    | dict.fromkeys(loha.LEAVES, "loha")
    | dict.fromkeys(lora.LEAVES | full.RESIDUAL_LEAVES, "lora")
    | dict.fromkeys(lora.EMBEDDING_LEAVES, "embedding")
    | {"diff": "full", "w_norm": "norm"}
)


def read_form(module: FileModule, context: FormContext) -> DeltaForm | None:
    """Return what the factors of a module amount to; None if it has none.

    Raises:
        AdapterTensorError: A factor is unusable, lacks its partner, or comes in two forms; or two
            algorithms change the module.
        AdapterMismatchError: The factors do not multiply out to the base weight.
        UnsupportedModuleError: The module is not one that the algorithm can change.
    """
    algorithm = _algorithm(module)
    if algorithm is None or algorithm == "norm":
        return None
    if context.shape.kind is ModuleKind.NORM:
        if algorithm == "full":
            return None  # a difference of the norm's weight
        raise UnsupportedModuleError(context.shape.name, f"a norm has no {algorithm}")
    return _READERS[algorithm](module, context)


def _algorithm(module: FileModule) -> str | None:
    """Return the algorithm of a module, if it has one; every tensor must have its part in it."""
    found: dict[str, str] = {}
    for leaf, entry in module.by_leaf.items():
        if leaf in BESIDE_FACTORS:
            continue
        if leaf not in _ALGORITHMS:
            raise AdapterTensorError(entry.key, "belongs to an algorithm that is not served")
        found.setdefault(_ALGORITHMS[leaf], entry.key)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise AdapterTensorError(second, f"changes the same module as {first!r} in another way")
    return next(iter(found), None)

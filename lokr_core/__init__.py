"""The algebra of LoKr adapters: read them, attach them to a model, apply them row by row."""

from lokr_core.adapter import Adapter, AdapterInfo, ScaleSource
from lokr_core.errors import (
    AdapterConfigError,
    AdapterError,
    AdapterFileError,
    AdapterInUseError,
    AdapterMismatchError,
    AdapterNotAddedError,
    AdapterTensorError,
    LokrError,
    LossyMergeError,
    MergeBudgetError,
    MergeError,
    MixError,
    RoutingError,
    ShapeError,
    UnmatchedKeysError,
    UnsupportedModuleError,
)
from lokr_core.formats import AdapterReader, ReadOptions, ScaleOverrides, read_adapter
from lokr_core.mix import AdapterMix, AdapterRef, Apply, MixPart, check_adapter_id

__all__ = [
    "Adapter",
    "AdapterConfigError",
    "AdapterError",
    "AdapterFileError",
    "AdapterInUseError",
    "AdapterInfo",
    "AdapterMismatchError",
    "AdapterMix",
    "AdapterNotAddedError",
    "AdapterReader",
    "AdapterRef",
    "AdapterTensorError",
    "Apply",
    "LokrError",
    "LossyMergeError",
    "MergeBudgetError",
    "MergeError",
    "MixError",
    "MixPart",
    "ReadOptions",
    "RoutingError",
    "ScaleOverrides",
    "ScaleSource",
    "ShapeError",
    "UnmatchedKeysError",
    "UnsupportedModuleError",
    "check_adapter_id",
    "read_adapter",
]

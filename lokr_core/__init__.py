"""The algebra of LoKr adapters: read them, attach them to a model, apply them row by row."""

from lokr_core.adapter import Adapter, AdapterInfo, ScaleSource
from lokr_core.attach import Adapted, attach
from lokr_core.cache import MergeCache
from lokr_core.cost import MixCost
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
from lokr_core.layers.spans import RowSpan
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, AdapterRef, Apply, MixPart, check_adapter_id, is_adapter_id

__all__ = [
    "Adapted",
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
    "MergeCache",
    "MergeError",
    "MergedMix",
    "MixCost",
    "MixError",
    "MixPart",
    "ReadOptions",
    "RoutingError",
    "RowSpan",
    "ScaleOverrides",
    "ScaleSource",
    "ShapeError",
    "UnmatchedKeysError",
    "UnsupportedModuleError",
    "attach",
    "check_adapter_id",
    "is_adapter_id",
    "read_adapter",
]

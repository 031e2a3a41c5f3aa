"""The algebra of LoKr adapters: read them, attach them to a model, apply them row by row."""

from .adapted import Adapted, attach
from .adapter import Adapter, AdapterInfo, ScaleSource
from .cache import MergeCache
from .cost import MixCost
from .errors import (
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
from .formats import AdapterReader, ReadOptions, ScaleOverrides, read_adapter
from .layers.spans import RowSpan
from .merge import MergedMix
from .mix import (
    ADAPTER_ID_RULE,
    AdapterMix,
    AdapterRef,
    Apply,
    MixPart,
    check_adapter_id,
    is_adapter_id,
)

__all__ = [
    "ADAPTER_ID_RULE",
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

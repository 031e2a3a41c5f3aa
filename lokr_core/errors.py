"""Errors that lokr_core raises on purpose; each names the thing at fault, and often the remedy."""

from collections.abc import Sequence

MAX_QUOTED_CHARS = 120
MAX_LISTED_CHARS = 300


def quoted(value: object) -> str:
    """Return what a file or a caller gave so that it can stand in a message: escaped, and short."""
    text = repr(value)
    if len(text) <= MAX_QUOTED_CHARS:
        return text
    return f"{text[: MAX_QUOTED_CHARS // 2]}…{text[-MAX_QUOTED_CHARS // 2 :]}"


def listed(values: Sequence[object]) -> str:
    """Return the first few of what a file or a caller gave, quoted, and how many more there are."""
    shown: list[str] = []
    for value in values[:5]:
        if sum(map(len, shown)) < MAX_LISTED_CHARS:
            shown.append(quoted(value))
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class LokrError(Exception):
    """Base of every error that this project raises on purpose."""


class ShapeError(LokrError):
    """Tensors that must fit together do not."""


class AdapterError(LokrError):
    """An adapter cannot be read from its file, or does not fit the base model."""


class AdapterFileError(AdapterError):
    """A file is missing, unreadable, truncated, or not safetensors."""


class AdapterConfigError(AdapterError):
    """An adapter's configuration is missing, malformed, or asks for what is not served."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class AdapterTensorError(AdapterError):
    """A tensor of the file is unusable: not finite, of a wrong dtype, without its partner."""

    def __init__(self, tensor: str, problem: str) -> None:
        super().__init__(f"tensor {quoted(tensor)} {problem}")
        self.tensor = tensor


class UnmatchedKeysError(AdapterError):
    """Keys of the file belong to no module of the base model."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(
            f"{len(keys)} tensors match no module of the base model: {listed(keys)}; "
            "load with partial to leave them out"
        )
        self.keys = tuple(keys)


class AdapterMismatchError(AdapterError):
    """An adapter was made for another base model: its shapes do not fit the module."""

    def __init__(self, module: str, *, found: Sequence[int], expected: Sequence[int]) -> None:
        super().__init__(
            f"module {module!r}: the adapter's delta is {tuple(found)}, "
            f"but the base weight is {tuple(expected)}; was it trained on another base model?"
        )
        self.module = module
        self.found = tuple(found)
        self.expected = tuple(expected)


class UnsupportedModuleError(AdapterError):
    """An adapter binds to a module that cannot be routed."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"module {module!r} cannot carry an adapter: {reason}")
        self.module = module


class MixError(LokrError):
    """A mix of adapters is malformed, or does not fit the adapters that it names."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class RoutingError(LokrError):
    """The rows of a forward cannot be matched to the mixes that were given for them."""


class AdapterInUseError(LokrError):
    """An adapter cannot be removed while a forward or a lease holds it."""


class AdapterNotAddedError(LokrError):
    """A mix names an adapter that was not added to the model."""


class MergeError(LokrError):
    """A mix cannot be merged into the base weights."""


class MergeBudgetError(MergeError):
    """The merged weights of a mix do not fit the merge cache beside those in use."""


class LossyMergeError(MergeError):
    """Merging into the base's dtype would round too much of the delta away."""

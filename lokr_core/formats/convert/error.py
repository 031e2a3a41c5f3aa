"""ConversionError: why an adapter has no exact form in another layout."""

from lokr_core.errors import AdapterError


class ConversionError(AdapterError):
    """An adapter cannot be written in a layout without a change of what it does."""

    def __init__(self, module: str, problem: str) -> None:
        super().__init__(f"module {module!r}: {problem}")
        self.module = module

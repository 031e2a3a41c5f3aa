"""Writing adapters in other layouts, where that is exact."""

from lokr_core.formats.convert.convert import Conversion, Layout, convert
from lokr_core.formats.convert.error import ConversionError

__all__ = ["Conversion", "ConversionError", "Layout", "convert"]

"""Writing adapters in other layouts, where that is exact."""

from lokr_core.formats.convert.convert import Conversion, convert
from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.layouts import Layout

__all__ = ["Conversion", "ConversionError", "Layout", "convert"]

"""What a file of an adapter holds, and how it fits a base model."""

from lokr_core.formats.inspect.inspect import Inspection, inspect_adapter
from lokr_core.formats.inspect.report import AdapterReport, Problem

__all__ = ["AdapterReport", "Inspection", "Problem", "inspect_adapter"]

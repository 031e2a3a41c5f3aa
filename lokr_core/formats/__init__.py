"""Adapter files of every trainer, read into one form; strict, and bound to a base model."""

from lokr_core.formats.read import AdapterReader, ReadOptions, read_adapter
from lokr_core.formats.scale import ScaleOverrides

__all__ = ["AdapterReader", "ReadOptions", "ScaleOverrides", "read_adapter"]

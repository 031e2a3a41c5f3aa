"""Adapter files of every trainer, read into one form; strict, and bound to a base model."""

from .read import AdapterReader, ReadOptions, read_adapter
from .scale import ScaleOverrides

__all__ = ["AdapterReader", "ReadOptions", "ScaleOverrides", "read_adapter"]

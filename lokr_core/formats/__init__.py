"""Adapter files of every trainer, read into one form; strict, and bound to a base model."""

from lokr_core.formats.read import read_adapter

__all__ = ["read_adapter"]

"""Autocast, which narrows products where it is on; not every type of device has it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_autocast_on(device_type: str) -> bool:
    """Whether products on a type of device are narrowed now."""
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:  # a type that has none; asking for that first would double the time
        return False


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which no product is narrowed."""
    if is_autocast_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()

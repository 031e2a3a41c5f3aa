"""Layouts: the forms that adapters are written in."""

from enum import Enum


class Layout(Enum):
    """A layout that adapters can be written in."""

    CANONICAL = "canonical"
    PEFT = "peft"
    LYCORIS = "lycoris"

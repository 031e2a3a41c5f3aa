"""What the package offers."""

import importlib

import pytest

import lokr_core
from lokr_core import formats


@pytest.mark.parametrize("package", [lokr_core, formats], ids=lambda package: package.__name__)
def test_every_name_of_a_package_is_there(package: object) -> None:
    """They are imported when they are asked for, so a misspelt one would be found by users."""
    names: list[str] = package.__all__  # type: ignore[attr-defined] # packages that have one

    assert names
    assert all(getattr(package, name) is not None for name in names)


def test_no_name_is_hidden_by_a_module() -> None:
    """A module is put under its name when it is imported, in place of what is called the same."""
    for name in lokr_core.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"lokr_core.{name}")

"""Maps: they pick the rows that diffusers' own converters of base weights pick."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lokr_core.formats.binding import FileModule
from lokr_core.formats.names import ModuleNames
from lokr_core.spec import ModuleKind
from tests.core.names.bases import FAMILIES, Family, spec_of
from tests.core.names.rows import found, original_names, reached


def checkpoint(
    modules: Mapping[str, FileModule], family: Family, numbers: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return original weights and biases in which every row holds a number of its own."""
    weights = family.extra()
    for name, module in modules.items():
        ids = numbers[name] + torch.arange(module.out_features, dtype=torch.float64)
        spec = module.targets[0].spec
        is_rms = spec.kind is ModuleKind.NORM and spec.bias is None
        weights[f"{name}.{family.norm_weight if is_rms else 'weight'}"] = ids[:, None]
        if spec.bias is not None:
            weights[f"{name}.bias"] = ids
    return weights


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_those_that_diffusers_converts(name: str) -> None:
    """The converters made the weights that people run: rows they put elsewhere are the truth.

    A converter takes every original weight there is, so a name that the map lacks is missed here.
    """
    family = FAMILIES[name]
    spec = spec_of(family.make)
    names = ModuleNames(spec)
    modules = {original: found(names, original) for original in original_names(spec)}
    numbers = {original: 100_000 * index for index, original in enumerate(modules)}

    converted = family.convert(checkpoint(modules, family, numbers))

    expected = {
        path: numbers[original] + rows.double()
        for original, module in modules.items()
        for path, rows in reached(module).items()
    }
    assert set(expected) == set(spec.modules)
    for path, rows in expected.items():
        torch.testing.assert_close(converted[f"{path}.weight"][:, 0], rows)
        if spec.modules[path].bias is not None:
            torch.testing.assert_close(converted[f"{path}.bias"], rows)

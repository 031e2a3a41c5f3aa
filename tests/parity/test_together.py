"""Rows that carry adapters of every algorithm and form, side by side in one batch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.parity.compare import DTYPES, WAYS, Error, Part, Row, Twin, change_of, errors_of_rows
from tests.parity.layers import LAYERS
from tests.parity.matrix import CASES, Case
from tests.parity.report import worst_of


def _rows(cases: Sequence[Case]) -> Iterator[Row]:
    """Yield each adapter alone, then each with the next one, then the base among them."""
    for index in range(len(cases)):
        yield (Part(adapter=index, weight=1.0),)
        if index % 5 == 0:
            yield ()
    for index, (case, following) in enumerate(pairwise(cases)):
        if not (case.is_replacement and following.is_replacement):
            yield Part(adapter=index, weight=0.5), Part(adapter=index + 1, weight=-1.0)


@pytest.mark.parametrize("name", sorted({case.layer for case in CASES}))
def test_every_adapter_of_a_layer_runs_in_one_batch(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    """What one row carries must not change what another gets, however unlike they are."""
    layer, cases = LAYERS[name], [case for case in CASES if case.layer == name]
    rows = list(_rows(cases))
    trained = []
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        trained.append(case.trainer.train(layer.base(torch.float64), folder, seed=1 + number % 2))
    changes = [change_of(one, layer, len(rows)) for one in trained]
    errors: list[Error] = []
    for dtype in DTYPES:
        twin = Twin(layer, dtype, len(rows))
        for one in trained:
            twin.add(one.path)
        for way in WAYS:
            errors += errors_of_rows(twin, rows, changes, way)

    record_property("parity", ("all in one batch", name, worst_of(errors), len(errors)))
    assert [error for error in errors if not error.is_small] == []

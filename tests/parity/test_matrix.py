"""Every case of the matrix gives what the trainer's own forward gives."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.compare import errors_of
from tests.parity.layers import LAYERS
from tests.parity.matrix import CASES, Case
from tests.parity.report import worst_of


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapter_changes_the_layer_as_its_trainer_did(
    tmp_path: Path, case: Case, record_property: Callable[[str, object], None]
) -> None:
    """A file must do here what it did where it was trained, whichever way it is applied."""
    errors = list(errors_of(case, LAYERS[case.layer], tmp_path))

    record_property("parity", (case.algorithm, case.layer, worst_of(errors), len(errors)))
    assert [error for error in errors if not error.is_small] == []

"""What a caller says in place of the file: usable numbers, and one version for equal ones."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lokr_core.errors import AdapterConfigError
from lokr_core.formats import read_adapter
from lokr_core.formats.scale import MAX_RANK
from tests.core.formats.hand_made import FLAT_Q, base_spec, low_rank, write

HUGE = [10**400, -(10**5000)]  # Python does not even print the second


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_override", float("nan")),
        ("scale_override", float("inf")),
        ("scale_override", "2"),
        ("alpha", float("-inf")),
        ("alpha", [2.0]),
        ("rank", 0),
        ("rank", -1),
        ("rank", 2.5),
        ("rank", "3"),
        ("rank", MAX_RANK + 1),
    ],
)
def test_override_that_is_no_usable_number_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    """It would come out as an adapter of NaN, far from where the mistake was made."""
    path = write(tmp_path, low_rank(FLAT_Q))

    with pytest.raises(AdapterConfigError, match=f"^{field}: {re.escape(repr(value))} is not"):
        read_adapter(path, base_spec(), **{field: value})


@pytest.mark.parametrize("field", ["scale_override", "alpha", "rank"])
@pytest.mark.parametrize("value", HUGE, ids=["huge", "beyond printing"])
def test_override_beyond_every_float_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    """Nothing can be divided by it."""
    path = write(tmp_path, low_rank(FLAT_Q))

    with pytest.raises(AdapterConfigError, match=f"^{field}: the number is too large"):
        read_adapter(path, base_spec(), **{field: value})


def test_largest_rank_is_divided_by(tmp_path: Path) -> None:
    """It is the largest that a message to a server holds."""
    path = write(tmp_path, low_rank(FLAT_Q))

    adapter = read_adapter(path, base_spec(), rank=MAX_RANK)

    assert adapter.scales.tolist() == [6 / (2**32 - 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale_override": 1}, {"scale_override": 1.0}),
        ({"scale_override": -0.0}, {"scale_override": 0.0}),
        ({"alpha": 6, "rank": np.int64(3)}, {"alpha": 6.0, "rank": 3}),
        ({"alpha": np.float32(0.5)}, {"alpha": 0.5}),
    ],
    ids=["whole scale", "negative zero", "whole alpha", "alpha of NumPy"],
)
def test_equal_overrides_give_one_version(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """They give the same weights; under two versions those would be merged and batched apart."""
    path = write(tmp_path, low_rank(FLAT_Q))

    first, second = (read_adapter(path, base_spec(), **given) for given in (one, other))

    assert first.ref == second.ref


def test_version_of_what_a_server_passes_stays_as_it_is(tmp_path: Path) -> None:
    """Clients keep versions: only other bytes or other options may change them."""
    path = write(tmp_path, low_rank(FLAT_Q))

    adapter = read_adapter(path, base_spec(), scale_override=0.5, alpha=1e22, rank=4)

    text = f"{adapter.info.digest}//0.5/1e+22/4/False"
    assert adapter.ref.version == hashlib.sha256(text.encode()).hexdigest()[:16]

"""One adapter under every name that is written for its module does the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lokr_core
from lokr_core import AdapterMix
from tests.parity.compare import DTYPES, WAYS, WEIGHTS, Error, change_of, error_of
from tests.parity.grammars import GRAMMARS, Grammar
from tests.parity.layers import LAYERS, PATH, SIDE
from tests.parity.lycoris_peer import Lycoris
from tests.parity.report import worst_of

NUM_ROWS = 3
DORA = {"weight_decompose": True}
TRAINERS = {
    "lokr": Lycoris(algorithm="lokr"),
    "loha with dora": Lycoris(algorithm="loha", options=DORA),
    "lora": Lycoris(algorithm="locon"),
    "several": Lycoris(algorithm="lokr", modules={PATH: {}, SIDE: {"algo": "loha", "dim": 3}}),
}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_adapter_is_found_by_every_name(
    tmp_path: Path,
    grammar: Grammar,
    trainer: Lycoris,
    record_property: Callable[[str, object], None],
) -> None:
    """A name that finds no module, or another one, is the commonest silent failure."""
    layer = LAYERS["linear"]
    trained = trainer.train(layer.base(torch.float64), tmp_path, seed=1)
    change = change_of(trained, layer, NUM_ROWS)
    path = grammar.rename(trained.path, tmp_path / "renamed.safetensors")

    errors = [
        error
        for dtype in DTYPES
        for error in _errors(grammar, path, change, dtype, len(trainer.modules))
    ]

    record_property("parity", ("every grammar", "linear", worst_of(errors), len(errors)))
    assert [error for error in errors if not error.is_small] == []


@torch.no_grad()
def _errors(
    grammar: Grammar, path: Path, change: torch.Tensor, dtype: torch.dtype, num_modules: int
) -> list[Error]:
    layer = LAYERS["linear"]
    models = {name: layer.base(dtype) for name in (grammar.component, *grammar.others)}
    model, x = models[grammar.component], layer.inputs(NUM_ROWS, dtype)
    plain = model(x).double()
    adapted = lokr_core.attach(models if grammar.component else model)
    adapter = lokr_core.read_adapter(path, adapted.spec, "a")
    adapted.add(adapter)
    start = f"{grammar.component}." if grammar.component else ""
    assert set(adapter.modules()) == {start + path for path in (PATH, SIDE)[:num_modules]}
    errors = []
    for way in WAYS:
        for weight in WEIGHTS:
            with adapted.using(AdapterMix.of({adapter: weight}), apply=way):
                found = model(x).double() - plain
            errors.append(error_of(f"{way} at {weight}", found, weight * change, dtype))
    return errors

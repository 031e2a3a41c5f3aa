"""Whole models: what a trainer changes all over a real one comes out at its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lycoris import LycorisNetwork
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import lokr_core
from lokr_core import AdapterMix
from tests.core.names.bases import sd15
from tests.parity.compare import DTYPES, WAYS, Error, error_of
from tests.parity.lycoris_peer import Lycoris
from tests.parity.report import worst_of

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # layers carry rounding on
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A real model, inputs of five samples, and the modules that are trained."""

    make: Callable[[], object]
    inputs: Callable[[], Inputs]
    kinds: tuple[type[nn.Module], ...]

    def base(self, dtype: torch.dtype) -> nn.Module:
        """Return the model with weights that are exact in float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make()
        assert isinstance(model, nn.Module)
        return nn.Module.eval(nn.Module.to(model, dtype))

    def answer(self, model: nn.Module, dtype: torch.dtype, row: int | None = None) -> Tensor:
        """Return what a model answers to all samples, or to one."""
        inputs = {
            name: x.to(dtype) if x.is_floating_point() else x for name, x in self.inputs().items()
        }
        if row is not None:
            inputs = {name: x[row : row + 1] if x.ndim else x for name, x in inputs.items()}
        answer = model(**inputs)[0]
        assert isinstance(answer, Tensor)
        return answer.double()

    def trainer(self, algorithm: str, **options: object) -> Lycoris:
        """Return a trainer of every module of the kinds."""
        modules: dict[str, Mapping[str, object]] = {
            path: {}
            for path, module in self.base(torch.float32).named_modules()
            if isinstance(module, self.kinds)
        }
        return Lycoris(algorithm=algorithm, alpha=0.5, options=options, modules=modules)


def _unet_inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(5, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(5, 3, 6, generator=generator),
    }


def _clip() -> object:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    )


def _clip_inputs() -> Inputs:
    ids = torch.randint(0, 20, (5, 6), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids}


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)
MODELS = {
    "unet": Model(make=sd15, inputs=_unet_inputs, kinds=(nn.Linear, *_CONVOLUTIONS, *_NORMS)),
    "clip": Model(make=_clip, inputs=_clip_inputs, kinds=(nn.Linear, *_NORMS)),
}
TRAINED: tuple[tuple[str, str, Mapping[str, object]], ...] = (
    ("unet", "lokr", {"train_norm": True, "use_tucker": True}),
    ("clip", "lokr", {"train_norm": True, "decompose_both": True}),
    ("clip", "loha", {"train_norm": True}),
)
WEIGHTS = (1.0, 0.5, -1.0)


@pytest.mark.parametrize(("name", "algorithm", "options"), TRAINED)
@torch.no_grad()
def test_whole_model_answers_as_its_trainer_did(
    tmp_path: Path,
    name: str,
    algorithm: str,
    options: Mapping[str, object],
    record_property: Callable[[str, object], None],
) -> None:
    """Rows of one batch, each with weights of its own, through every kind of layer at once."""
    model = MODELS[name]
    trainer = model.trainer(algorithm, **options)
    path = trainer.train(model.base(torch.float64), tmp_path, seed=1).path
    taught = model.base(torch.float64)
    network = trainer.reload(taught, path)
    changes = {row: _change(model, taught, network, row, w) for row, w in enumerate(WEIGHTS, 1)}
    errors = []
    for dtype in DTYPES:
        errors += _errors(model, path, changes, dtype)

    record_property("parity", ("whole models", name, worst_of(errors), len(errors)))
    assert [error for error in errors if error.relative > TOLERANCES[error.dtype]] == []


def _change(
    model: Model, taught: nn.Module, network: LycorisNetwork, row: int, weight: float
) -> Tensor:
    network.set_multiplier(weight)
    base = model.answer(model.base(torch.float64), torch.float64, row)
    return model.answer(taught, torch.float64, row) - base


def _errors(
    model: Model, path: Path, changes: Mapping[int, Tensor], dtype: torch.dtype
) -> list[Error]:
    base = model.base(dtype)
    plain = model.answer(base, dtype)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(path, adapted.spec, "a")
    adapted.add(adapter)
    mixes = [AdapterMix(), *(AdapterMix.of({adapter: w}) for w in WEIGHTS), AdapterMix()]
    errors = []
    for way in WAYS:
        with adapted.using(mixes, apply=way):
            found = model.answer(base, dtype) - plain
        assert not found[[0, 4]].any()
        for row, change in changes.items():
            errors.append(error_of(f"{way}, row {row}", found[row : row + 1], change, dtype))
    return errors

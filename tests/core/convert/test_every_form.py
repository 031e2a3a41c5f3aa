"""Every way to train that is covered, converted, and answered by the trainers' own loaders."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from lycoris import create_lycoris_from_weights
from torch import Tensor, nn

import lokr_core
from lokr_core.formats.convert import ConversionError, Layout, convert
from tests.parity.layers import LAYERS, Base
from tests.parity.matrix import FORMS, Case
from tests.parity.trained import quiet

# Of the layers that a form takes, the first of these.
PREFERRED = ("conv2d", "conv1d", "conv3d", "linear", "layer norm", "embedding")
MORE = (
    ("lycoris lora", "embedding"),
    ("lycoris lora", "conv2d in 2 groups"),
    ("lycoris lokr", "conv3d"),
    ("lycoris lokr", "transformers Conv1D"),
    ("lycoris lokr of two full factors", "conv1d"),
    ("lycoris lokr with a tucker w2", "conv1d"),
    ("peft lokr of two full factors", "conv1d"),
    ("peft lokr with a tucker w2", "conv1d"),
    ("peft lora", "embedding"),
    ("peft lora", "transformers Conv1D"),
    ("peft modules_to_save", "layer norm"),
)
# Why a case has no exact form in a layout, by patterns of its name.
REFUSED: dict[Layout, dict[str, str]] = {
    Layout.CANONICAL: {"peft lokr of two full factors on conv1d": "another matrix"},
    Layout.PEFT: {
        "lycoris .*dora": "epsilon",
        "lycoris full": "no full deltas",
        "lycoris norm": "no norm deltas",
        "lycoris lora with a tucker": "no Tucker core",
        "lycoris lokr .*(conv3d|Conv1D)|lycoris lokr on (conv3d|transformers)": "has no LOKR",
        "lycoris lokr of two full factors on conv1d": "another matrix",
        "lycoris lora on conv2d in 2 groups": "groups",
    },
    Layout.LYCORIS: {
        ".*on (embedding|transformers)": "of the kind",
        "peft lokr of two full factors on conv1d": "another matrix",
        "peft lokr of two full": "would round",
        "peft lora with dora": "epsilon",
        "peft lora with a bias": "no bias",
        "peft (lora and|modules_to_save)": "replaced parameters",
    },
}
# What LyCORIS cannot reload of its own, either: it takes ranks and sizes from the wrong tensors.
NOT_RELOADED = "lokr.* with a tucker w2|dora by input|unbalanced|the larger w1"

Answer = Callable[[Base, Path, Tensor], Tensor]


def cases() -> list[Case]:
    """Return one case of each form, and some more."""
    chosen = [
        min(
            form.cases(),
            key=lambda case: PREFERRED.index(case.layer) if case.layer in PREFERRED else 99,
        )
        for form in FORMS
    ]
    more = [c for form in FORMS for c in form.cases() if (c.form, c.layer) in MORE]
    return [*chosen, *(case for case in more if case not in chosen)]


def answer_of_peft(base: Base, path: Path, x: Tensor) -> Tensor:
    """Return what PEFT answers with a folder."""
    with quiet():
        model = peft.PeftModel.from_pretrained(base, str(path), autocast_adapter_dtype=False)
    answer = nn.Module.eval(nn.Module.to(model, torch.float64))(x)
    assert isinstance(answer, Tensor)
    return answer


def answer_of_lycoris(base: Base, path: Path, x: Tensor) -> Tensor:
    """Return what LyCORIS answers with a file."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    network, _ = create_lycoris_from_weights(1.0, str(path), base)
    for lora in network.loras:
        lora.to(torch.float64)
    network.apply_to()
    assert network.loras
    return base.forward(x)


def answer_of_ours(base: Base, path: Path, x: Tensor) -> Tensor:
    """Return what we answer with a file."""
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(path, adapted.spec)
    adapted.add(adapter)
    with adapted.using(lokr_core.AdapterMix.of({adapter: 1.0}), apply="unmerged"):
        return base.forward(x)


ANSWERS: dict[Layout, Answer] = {
    Layout.CANONICAL: answer_of_ours,
    Layout.PEFT: answer_of_peft,
    Layout.LYCORIS: answer_of_lycoris,
}


def refusal(case: Case, layout: Layout) -> str | None:
    """Return why a case is refused."""
    reasons = REFUSED[layout].items()
    return next((reason for name, reason in reasons if re.match(name, case.name)), None)


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.value)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_conversion_answers_as_the_trainer_did_or_is_refused(
    case: Case, layout: Layout, tmp_path: Path
) -> None:
    """A layout that cannot hold a form exactly must not hold it nearly."""
    layer = LAYERS[case.layer]
    (tmp_path / "source").mkdir()
    trained = case.trainer.train(layer.base(torch.float64), tmp_path / "source", seed=1)
    spec = lokr_core.attach(layer.base(torch.float64)).spec
    out = tmp_path / ("out" if layout is Layout.PEFT else "out.safetensors")
    reason = refusal(case, layout)
    if reason is not None:
        with pytest.raises(ConversionError, match=reason):
            convert(trained.path, out, layout, spec=spec)
        return
    convert(trained.path, out, layout, spec=spec)
    if layout is Layout.LYCORIS and re.search(NOT_RELOADED, case.form):
        return
    x = layer.inputs(2, torch.float64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = trained.model(x)
        found = ANSWERS[layout](layer.base(torch.float64), out, x)
        change = (wanted - layer.base(torch.float64)(x)).abs().max()

    assert float(change) > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7 * float(change))

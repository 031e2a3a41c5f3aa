"""The matrix: every way to train that is covered, on every layer that it takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from tests.parity.layers import CONV1D, CONV2D, CONV3D, GROUPED, LINEAR, NORMS, PLAIN_NORMS, SIDE
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft

Trainer = Lycoris | Peft

CONVOLUTIONS = (*CONV1D, *CONV2D, *CONV3D, *GROUPED)
KERNELS = tuple(name for name in CONVOLUTIONS if name != "conv2d of 1x1")  # take a Tucker core
TABLES = ("transformers Conv1D", "embedding")  # no trainer but PEFT's LoRA takes them as they are
WEIGHTED = (*LINEAR, *TABLES, *CONVOLUTIONS)
PEFT_LOKR = (*LINEAR, *CONV1D, *CONV2D, *GROUPED)
PEFT_KERNELS = tuple(name for name in PEFT_LOKR if name in KERNELS)
# PEFT's LoRA passes no dilation on, and in a grouped convolution reads every channel: neither is
# a change of the base's weight.
PEFT_LORA = (
    *LINEAR,
    *TABLES,
    "scaled embedding",
    "conv1d",
    "conv2d",
    "conv2d strided",
    "conv2d of 1x1",
    "conv3d",
)
WITH_BIAS = ("linear", "transformers Conv1D", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to train, on one kind of layer."""

    form: str
    layer: str
    trainer: Trainer

    @property
    def name(self) -> str:
        """What tests call it."""
        return f"{self.form} on {self.layer}"

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    @property
    def algorithm(self) -> str:
        """What it is counted under."""
        options = self.trainer.options
        if "modules_to_save" in options:
            return "modules_to_save"
        if "train_norm" in options:
            return "norm"
        has_dora = "weight_decompose" in options or "use_dora" in options
        name = "lora" if self.trainer.algorithm == "locon" else self.trainer.algorithm
        return f"{name} with dora" if has_dora else name

    @property
    def is_replacement(self) -> bool:
        """Whether a module or a bias is replaced, which two adapters of a mix cannot both do."""
        options = self.trainer.options
        return "modules_to_save" in options or options.get("bias", "none") != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to train, and the kinds of layers that take it."""

    name: str
    trainer: Trainer
    layers: Sequence[str]

    def cases(self) -> Iterator[Case]:
        """Yield the case of each layer."""
        for layer in self.layers:
            yield Case(form=self.name, layer=layer, trainer=self.trainer)


def _alpha(rank: int) -> float:
    """Return an alpha that is no power of the rank, and keeps the change loud."""
    return {1: 12.0, 16: 24.0}.get(rank, 3.0)


def _lycoris(
    name: str, algorithm: str, layers: Sequence[str], dim: int = 2, **options: object
) -> Form:
    """Return a form of LyCORIS, named after its algorithm."""
    trainer = Lycoris(algorithm=algorithm, dim=dim, alpha=_alpha(dim), options=options)
    return Form(name=f"lycoris {name}", trainer=trainer, layers=layers)


def _peft(name: str, algorithm: str, layers: Sequence[str], r: int = 2, **options: object) -> Form:
    trainer = Peft(algorithm=algorithm, r=r, alpha=_alpha(r), options=options)
    return Form(name=f"peft {name}", trainer=trainer, layers=layers)


def _dora(form: Form) -> Iterator[Form]:
    """Yield a form of LyCORIS with DoRA by output and by input."""
    trainer = form.trainer
    assert isinstance(trainer, Lycoris)
    for side, is_output in (("output", True), ("input", False)):
        options = {**trainer.options, "weight_decompose": True, "wd_on_out": is_output}
        with_dora = replace(trainer, options=options)
        yield Form(name=f"{form.name}, dora by {side}", trainer=with_dora, layers=form.layers)


def _stored(form: Form, dtype: torch.dtype) -> Form:
    """Return a form of LyCORIS whose file has another dtype."""
    trainer = form.trainer
    assert isinstance(trainer, Lycoris)
    stored = replace(trainer, dtype=dtype)
    return Form(name=f"{form.name} in {dtype}", trainer=stored, layers=form.layers)


LYCORIS_PLAIN = (
    _lycoris("lokr", "lokr", WEIGHTED),
    _lycoris("lokr of two low-rank factors", "lokr", WEIGHTED, dim=1, decompose_both=True),
    _lycoris("lokr of two full factors", "lokr", WEIGHTED, full_matrix=True),
    _lycoris("lokr with a tucker w2", "lokr", KERNELS, use_tucker=True),
    _lycoris(
        "lokr with low-rank w1 and tucker w2",
        "lokr",
        KERNELS,
        dim=1,
        use_tucker=True,
        decompose_both=True,
    ),
    _lycoris("loha", "loha", WEIGHTED),
    _lycoris("loha too large for khatri-rao", "loha", WEIGHTED, dim=8),
    _lycoris("loha with tucker cores", "loha", KERNELS, use_tucker=True),
    _lycoris("lora", "locon", WEIGHTED),
    _lycoris("lora with a tucker core", "locon", KERNELS, use_tucker=True),
)
LYCORIS_OTHER = (
    _lycoris("lokr, unbalanced", "lokr", WEIGHTED, unbalanced_factorization=True),
    _lycoris("lokr with a low-rank w1 and full w2", "lokr", LINEAR, decompose_both=True, factor=3),
    _lycoris("lokr with a scalar", "lokr", LINEAR, use_scalar=True),
    _lycoris("loha with a scalar", "loha", LINEAR, use_scalar=True),
    _lycoris("lora with a scalar", "locon", LINEAR, use_scalar=True),
    _lycoris("loha, rank-stabilised", "loha", LINEAR, dim=4, rs_lora=True),
    _lycoris("lora, rank-stabilised", "locon", ("linear", "conv2d"), dim=4, rs_lora=True),
    _lycoris("full difference", "full", WEIGHTED),
    _lycoris("norm", "lokr", PLAIN_NORMS, train_norm=True),
)
HALVES = tuple(
    _stored(form, dtype)
    for form in (
        _lycoris("lokr", "lokr", ("linear", "conv2d")),
        _lycoris("loha", "loha", ("linear",)),
    )
    for dtype in (torch.float16, torch.bfloat16)
)
PEFT = (
    _peft("lokr", "lokr", PEFT_LOKR),
    _peft("lokr of two low-rank factors", "lokr", PEFT_LOKR, r=1, decompose_both=True),
    _peft("lokr of two full factors", "lokr", PEFT_LOKR, r=16),
    _peft("lokr with the larger w1", "lokr", PEFT_LOKR, decompose_factor=8),
    _peft("lokr with a tucker w2", "lokr", PEFT_KERNELS, use_effective_conv2d=True),
    _peft("loha", "loha", PEFT_LOKR),
    _peft("loha with tucker cores", "loha", PEFT_KERNELS, use_effective_conv2d=True),
    _peft("lora", "lora", PEFT_LORA),
    _peft("lora, rank-stabilised", "lora", PEFT_LORA, use_rslora=True),
    _peft("lora with dora", "lora", PEFT_LORA, use_dora=True),
    _peft("lora with a bias of its own", "lora", WITH_BIAS, lora_bias=True),
    _peft("lora and its modules' biases", "lora", WITH_BIAS, bias="lora_only"),
    _peft("lora and all biases", "lora", WITH_BIAS, bias="all"),
)
REPLACED = Form(
    name="peft modules_to_save",
    trainer=Peft(algorithm="lora", targets=(SIDE,), options={"modules_to_save": ["to_out"]}),
    layers=(*WEIGHTED, "scaled embedding", *NORMS),
)
FORMS = (
    *LYCORIS_PLAIN,
    *chain.from_iterable(_dora(form) for form in LYCORIS_PLAIN),
    *LYCORIS_OTHER,
    *HALVES,
    *PEFT,
    REPLACED,
)
CASES = tuple(case for form in FORMS for case in form.cases())

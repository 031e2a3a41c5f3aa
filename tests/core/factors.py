"""Random factors of every form, and adapters built of them over a plain base."""

import hashlib
from collections.abc import Mapping
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lokr_core import Adapter, AdapterInfo, AdapterRef
from lokr_core.ops.torch_ops import dora_gain
from lokr_core.packing import pack
from lokr_core.spec import ModelSpec
from lokr_core.weights import (
    DeltaWeights,
    Factor,
    FullFactor,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
    Term,
)

SIZES = st.integers(1, 5)
assert_close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)  # of float64
FORMS = ["full", "low rank w2", "low rank both", "lora", "hadamard", "dora output", "dora input"]


class Base(nn.Module):
    """Three linear layers of odd sizes, the last without a bias, on the way from 12 to 6."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20, dtype=dtype)
        self.second = nn.Linear(20, 15, dtype=dtype)
        self.head = nn.Linear(15, 6, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., 6] for [..., 12]."""
        hidden: Tensor = self.second(torch.tanh(self.first(x)))
        out: Tensor = self.head(torch.tanh(hidden))
        return out


def make_base(dtype: torch.dtype = torch.float64, seed: int = 0) -> Base:
    """Return a base whose weights are drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Base(dtype).requires_grad_(False).eval()


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def low_rank(rows: int, cols: int, rank: int, seed: int, *lead: int) -> LowRankFactor:
    """Return a factor [*lead, rows, cols] of a rank."""
    return LowRankFactor(
        a=draw(*lead, rows, rank, seed=seed), b=draw(*lead, rank, cols, seed=seed + 1)
    )


def random_factor(rows: int, cols: int, rank: int | None, seed: int, *lead: int) -> Factor:
    """Return a factor [*lead, rows, cols], whole if ``rank`` is None."""
    if rank is None:
        return FullFactor(matrix=draw(*lead, rows, cols, seed=seed))
    return low_rank(rows, cols, rank, seed, *lead)


@st.composite
def lokr_weights(drawing: st.DrawFn, num_entries: int | None = None) -> LokrWeights:
    """Draw a Kronecker delta of any form and odd sizes, batched if ``num_entries`` is given."""
    lead = () if num_entries is None else (num_entries,)
    ranks = st.none() | st.integers(1, 3)
    seed = drawing(st.integers(0, 2**20))
    return LokrWeights(
        w1=random_factor(drawing(SIZES), drawing(SIZES), drawing(ranks), seed, *lead),
        w2=random_factor(drawing(SIZES), drawing(SIZES), drawing(ranks), seed + 7, *lead),
        scale=drawing(st.sampled_from([1.0, -0.5, 2.25])),
    )


def _pair(size: int) -> tuple[int, int]:
    small = next(n for n in (3, 2, 5) if size % n == 0)
    return small, size // small


def _delta(out: int, inner: int, form: str, seed: int, rank: int) -> DeltaWeights:
    (o1, o2), (i1, i2) = _pair(out), _pair(inner)
    if form == "hadamard":
        left, right = low_rank(out, inner, rank, seed), low_rank(out, inner, rank, seed + 3)
        return HadamardWeights(left=left, right=right, scale=0.7)
    if form == "lora":
        one = FullFactor(matrix=torch.ones(1, 1, dtype=torch.float64))
        return LokrWeights(w1=one, w2=low_rank(out, inner, rank, seed), scale=0.3)
    w1 = random_factor(o1, i1, rank if form == "low rank both" else None, seed)
    w2 = random_factor(o2, i2, None if form == "full" else rank, seed + 3)
    return LokrWeights(w1=w1, w2=w2, scale=0.5)


def random_module(weight: Tensor, form: str, seed: int, rank: int = 2) -> ModuleWeights:
    """Return what an adapter of a form does to a module of a weight [O, I]."""
    out, inner = weight.shape
    delta = _delta(out, inner, form, seed, rank)
    if not form.startswith("dora"):
        return ModuleWeights.of(delta)
    axis = GainAxis.OUTPUT if form == "dora output" else GainAxis.INPUT
    size = weight.shape[0 if axis is GainAxis.OUTPUT else 1]
    magnitude = draw(size, seed=seed + 9).abs() + 1
    gain = dora_gain(weight, [Term(delta=delta)], magnitude, axis, 0.0)
    return ModuleWeights.of(delta, gain)


def build_adapter(
    spec: ModelSpec, adapter_id: str, modules: Mapping[str, ModuleWeights]
) -> Adapter:
    """Return an adapter of given weights, with a version that tells its content."""
    packed = pack(modules)
    content = packed.buffer.double().numpy().tobytes() + packed.scales.numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    info = AdapterInfo(
        format="lycoris",
        algorithms=("lokr",),
        digest=digest,
        num_parameters=packed.buffer.numel(),
        scales=(),
    )
    return Adapter(
        ref=AdapterRef(adapter_id=adapter_id, version=digest[:16]),
        spec=spec,
        layout=spec.shared_layout(packed.layout),
        buffer=packed.buffer,
        scales=packed.scales,
        info=info,
    )


def random_adapter(
    spec: ModelSpec,
    adapter_id: str,
    form: str = "low rank w2",
    *,
    seed: int = 1,
    rank: int = 2,
    paths: tuple[str, ...] | None = None,
) -> Adapter:
    """Return an adapter of one form on all modules, or on those of ``paths``."""
    chosen = tuple(spec.modules) if paths is None else paths
    return build_adapter(
        spec,
        adapter_id,
        {
            path: random_module(spec.modules[path].weight.double(), form, seed + 20 * n, rank)
            for n, path in enumerate(chosen)
        },
    )

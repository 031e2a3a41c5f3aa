"""What a file keeps in one module and the base in several, and the other way round."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.errors import AdapterMismatchError, UnsupportedModuleError
from lokr_core.formats.binding import FileModule, NamedTensor, Target
from lokr_core.formats.modules import ModuleReader
from lokr_core.formats.notes import TrainerNotes
from lokr_core.formats.place import Change, place
from lokr_core.formats.scale import ScaleOverrides
from lokr_core.layers.discover import discover
from lokr_core.ops.torch_ops import adapted_weight, bias_change
from lokr_core.spec import ModelSpec
from lokr_core.weights import DenseWeights, LokrWeights, ModuleWeights, Rows
from tests.core.formats.hand_made import draw

DIM = 10
SIZES = {"q": 6, "k": 4, "v": 10}  # unequal, and not multiples of the factors' rows


def split_spec() -> ModelSpec:
    """Return three projections of a base that keeps them split."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.ModuleDict({n: nn.Linear(DIM, size) for n, size in SIZES.items()})
        return discover(base.double())


def fused_spec() -> ModelSpec:
    """Return the same projections in one module."""
    base, split = nn.Module(), split_spec()
    base.qkv = nn.Linear(DIM, sum(SIZES.values()), dtype=torch.float64)
    base.qkv.weight.data.copy_(torch.cat([module.weight for module in split.modules.values()]))
    return discover(base)


def targets_of(spec: ModelSpec) -> tuple[Target, ...]:
    """Return where the outputs of a fused module of a file belong."""
    targets, start = [], 0
    for module in spec.modules.values():
        stop = start + module.out_features
        targets.append(Target(spec=module, rows=Rows(start=start, stop=stop), at=0))
        start = stop
    return tuple(targets)


def file_module(tensors: dict[str, Tensor], targets: tuple[Target, ...]) -> FileModule:
    """Return a module of a file."""
    by_leaf = {leaf: NamedTensor(key=f"qkv.{leaf}", value=t) for leaf, t in tensors.items()}
    return FileModule(name="qkv", by_leaf=by_leaf, targets=targets)


def lokr(num_out: int, **others: Tensor) -> dict[str, Tensor]:
    """Return a LoKr of a whole w1 [num_out / 4, 2] and a low-rank w2 [4, 5], and what else."""
    return {
        "lokr_w1": draw(num_out // 4, 2, seed=1).double(),
        "lokr_w2_a": draw(4, 2, seed=2).double(),
        "lokr_w2_b": draw(2, 5, seed=3).double(),
        "alpha": torch.tensor(3.0),
        **others,
    }


def placed(spec: ModelSpec, *modules: FileModule) -> dict[str, ModuleWeights]:
    """Read modules of a file and place them."""
    reader = ModuleReader(
        spec=spec,
        config=None,
        notes=TrainerNotes.of({}),
        is_peft=False,
        overrides=ScaleOverrides(),
    )
    return place((module, reader.read(module).change) for module in modules)


def adapted(spec: ModelSpec, weights: dict[str, ModuleWeights]) -> Tensor:
    """Return the weights of all modules as they are adapted, below each other."""
    return torch.cat(
        [adapted_weight(m.weight, weights[p], torch.float64) for p, m in spec.modules.items()]
    )


def test_fused_file_is_sliced_onto_split_modules_in_factors(tmp_path: Path) -> None:
    """The sum of what the split modules get is what the fused one would have."""
    fused, split = fused_spec(), split_spec()
    tensors = lokr(20, diff_b=draw(20, seed=4).double())

    whole = placed(fused, file_module(tensors, (Target(spec=fused.modules["qkv"]),)))
    parts = placed(split, file_module(tensors, targets_of(split)))

    torch.testing.assert_close(adapted(split, parts), adapted(fused, whole))
    deltas = [term.delta for module in parts.values() for term in module.terms]
    assert [type(delta) for delta in deltas] == [LokrWeights] * 3
    biases = [bias_change(None, module, torch.float64) for module in parts.values()]
    assert torch.equal(torch.cat([b for b in biases if b is not None]), tensors["diff_b"])


@pytest.mark.parametrize("by_output", [True, False])
def test_dora_of_a_fused_file_has_the_norms_of_the_fused_weight(by_output: bool) -> None:
    """By input a norm runs over all outputs, those of the other modules too."""
    fused, split = fused_spec(), split_spec()
    magnitude = draw(20, 1, seed=5).abs() if by_output else draw(1, DIM, seed=5).abs()
    tensors = lokr(20, dora_scale=magnitude.double())

    whole = placed(fused, file_module(tensors, (Target(spec=fused.modules["qkv"]),)))
    parts = placed(split, file_module(tensors, targets_of(split)))

    torch.testing.assert_close(adapted(split, parts), adapted(fused, whole))


def part_of_fused(fused: ModelSpec, name: str, tensors: dict[str, Tensor]) -> FileModule:
    """Return a module of a file for one of the projections of a fused base."""
    at = {"q": 0, "k": 6, "v": 10}[name]
    target = Target(spec=fused.modules["qkv"], rows=Rows(start=0, stop=SIZES[name]), at=at)
    return file_module(tensors, (target,))


def test_split_file_is_put_side_by_side_on_a_fused_module() -> None:
    """Each keeps its own factors, scale and magnitude; what no module changes stays."""
    fused, split = fused_spec(), split_spec()
    ours = {
        "k": lokr(4, diff_b=draw(4, seed=6).double(), dora_scale=draw(4, 1, seed=7).abs().double()),
        "v": {"diff": draw(10, DIM, seed=8).double()},
    }

    whole = placed(fused, *(part_of_fused(fused, name, tensors) for name, tensors in ours.items()))
    parts = placed(
        split,
        *(file_module(t, (Target(spec=split.modules[name]),)) for name, t in ours.items()),
    )

    wanted = [split.modules["q"].weight]
    wanted += [adapted_weight(split.modules[n].weight, parts[n], torch.float64) for n in ours]
    torch.testing.assert_close(adapted(fused, whole), torch.cat(wanted))
    bias = whole["qkv"].bias
    assert bias is not None
    assert torch.equal(bias[6:10], ours["k"]["diff_b"])
    assert not bias[:6].any()
    assert not bias[10:].any()


def test_halves_may_have_changed_places() -> None:
    """Shift and scale of a modulation lie the other way round in diffusers."""
    spec = split_spec()
    module = spec.modules["k"]
    swapped = (
        Target(spec=module, rows=Rows(start=0, stop=2), at=2),
        Target(spec=module, rows=Rows(start=2, stop=4), at=0),
    )
    tensors = lokr(4, diff_b=draw(4, seed=6).double(), dora_scale=draw(4, 1, seed=7).abs().double())
    halves = [module.weight[2:], module.weight[:2]]
    twin = nn.Module()
    twin.k = nn.Linear(DIM, 4, dtype=torch.float64)
    twin.k.weight.data.copy_(torch.cat(halves))
    twin_spec = discover(twin)

    found = placed(spec, file_module(tensors, swapped))["k"]
    straight = placed(twin_spec, file_module(tensors, (Target(spec=twin_spec.modules["k"]),)))["k"]

    ours = adapted_weight(module.weight, found, torch.float64)
    theirs = adapted_weight(twin_spec.modules["k"].weight, straight, torch.float64)
    torch.testing.assert_close(torch.cat([ours[2:], ours[:2]]), theirs)
    assert found.bias is not None
    assert torch.equal(found.bias, tensors["diff_b"].roll(2))


def test_dora_by_input_of_a_part_is_refused_by_name() -> None:
    """A module has one gain by input; the other outputs would get it too."""
    fused = fused_spec()
    module = part_of_fused(fused, "k", lokr(4, dora_scale=torch.ones(1, DIM).double()))

    with pytest.raises(UnsupportedModuleError, match=r"'qkv' cannot carry .* 4 of its outputs"):
        placed(fused, module)


def test_replacement_of_a_part_is_refused_by_name() -> None:
    """A module is replaced as a whole."""
    fused = fused_spec()
    module = part_of_fused(fused, "k", {"weight": torch.ones(4, DIM)})

    with pytest.raises(UnsupportedModuleError, match="replaces a part of it only"):
        placed(fused, module)


def test_fused_replacement_is_split() -> None:
    """Each module gets its own rows of the weight that a file holds whole."""
    split = split_spec()
    weight, bias = draw(20, DIM, seed=8), draw(20, seed=9)
    module = file_module({"weight": weight, "bias": bias}, targets_of(split))

    parts = placed(split, module)

    replaced = [part.replacement for part in parts.values()]
    weights = [r.weight for r in replaced if r is not None and r.weight is not None]
    biases = [r.bias for r in replaced if r is not None and r.bias is not None]
    assert torch.equal(torch.cat(weights), weight)
    assert torch.equal(torch.cat(biases), bias)


def test_fused_file_of_another_size_is_refused_with_both_shapes() -> None:
    """The expected shape is that of all targets together."""
    split = split_spec()

    with pytest.raises(AdapterMismatchError) as raised:
        placed(split, file_module(lokr(16), targets_of(split)))
    assert (raised.value.found, raised.value.expected) == ((16, DIM), (20, DIM))


def test_fused_file_over_modules_that_do_not_fit_each_other_is_refused() -> None:
    """Projections of other inputs were never one module."""
    base = nn.ModuleDict({"q": nn.Linear(DIM, 4), "k": nn.Linear(DIM + 1, 4)})
    spec = discover(base)

    with pytest.raises(UnsupportedModuleError, match=r"'k' cannot carry .* differ"):
        placed(spec, file_module(lokr(8), targets_of(spec)))


def test_module_that_is_not_changed_is_left_out() -> None:
    """What equals the base's is no change of it."""
    spec = split_spec()

    assert place([(file_module({}, (Target(spec=spec.modules["q"]),)), Change())]) == {}


def test_dense_deltas_are_cut_as_well() -> None:
    """A whole difference has no factors, but rows."""
    split = split_spec()
    diff = draw(20, DIM, seed=8).double()

    parts = placed(split, file_module({"diff": diff}, targets_of(split)))

    deltas = [term.delta for part in parts.values() for term in part.terms]
    matrices = [delta.matrix for delta in deltas if isinstance(delta, DenseWeights)]
    assert torch.equal(torch.cat(matrices), diff)

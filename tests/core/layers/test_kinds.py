"""What is particular to one kind of layer."""

import pytest
import torch
from torch import Tensor, nn

from lokr_core import Adapted, AdapterMix, RoutingError, UnsupportedModuleError, attach
from lokr_core.adapted import ApplyWord
from lokr_core.layers.discover import discover
from lokr_core.spec import ModuleKind
from lokr_core.weights import DenseWeights, Gain, GainAxis, LokrWeights, ModuleWeights
from tests.core.factors import assert_close, build_adapter, draw, low_rank, random_factor
from tests.core.layers.subjects import Host
from tests.tiny import tiny_llama


def conv_change(outs: int, columns: int, seed: int = 1) -> ModuleWeights:
    """Return a Kronecker change of a convolution."""
    w1 = random_factor(2, 2, None, seed)
    w2 = low_rank(outs // 2, columns // 2, 2, seed + 1)
    return ModuleWeights.of(LokrWeights(w1=w1, w2=w2, scale=0.5))


def attached(layer: nn.Module, weights: ModuleWeights) -> tuple[Host, Adapted, AdapterMix]:
    """Return a model of a layer, and the mix of one adapter of it."""
    host = Host(layer).requires_grad_(False).eval()
    adapted = attach(host)
    adapter = build_adapter(adapted.spec, "a", {"layer": weights})
    adapted.add(adapter)
    return host, adapted, AdapterMix.of({adapter: 1.0})


def test_one_image_without_a_batch_is_one_row() -> None:
    """Convolutions take a single sample as it is."""
    layer = nn.Conv2d(4, 6, 3, dtype=torch.float64)
    host, adapted, mix = attached(layer, conv_change(6, 4 * 9))
    image = draw(4, 5, 5, seed=3)

    with adapted.using(mix, "unmerged"):
        found, batch = host(image), host(image[None])

    assert found.shape == (6, 3, 3)
    assert_close(found, batch[0])


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 4)])
def test_images_of_any_size_share_one_plan(layer: nn.Module) -> None:
    """What is prepared for a number of samples is used again, however large they are."""
    is_conv = isinstance(layer, nn.Conv2d)
    weights = conv_change(6, 4 * 9) if is_conv else ModuleWeights(vector=draw(4, seed=1))
    host, adapted, mix = attached(layer, weights)
    sizes = [
        draw(2, 4, height, width, seed=3, dtype=torch.float32)
        for height, width in ((5, 5), (3, 4), (5, 5))
    ]

    with adapted.using([mix, AdapterMix()], "unmerged"):
        found = [host(images) for images in sizes]
    with adapted.using([mix, AdapterMix()], "merged"):
        wanted = [host(images) for images in sizes]

    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_images_may_lie_with_their_channels_last() -> None:
    """The order in memory is the caller's choice, and stays it."""
    layer = nn.Conv2d(4, 6, 3, dtype=torch.float64)
    host, adapted, mix = attached(layer, conv_change(6, 4 * 9))
    images = draw(2, 4, 5, 5, seed=3)

    with adapted.using([mix, AdapterMix()], "unmerged"):
        wanted = host(images)
        found = host(images.to(memory_format=torch.channels_last))

    assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_of_narrow_convolutions_are_computed_wide(dtype: torch.dtype) -> None:
    """The sum with the base's output is rounded once; rows of the base are not touched."""
    layer = nn.Conv2d(4, 6, 3, dtype=dtype)
    host, adapted, mix = attached(layer, conv_change(6, 4 * 9))
    images = draw(2, 4, 5, 5, seed=3, dtype=dtype)
    plain = host(images)
    (adapter,) = mix.parts
    change = adapted.spec.modules["layer"]
    delta = build_adapter(adapted.spec, "a", {"layer": conv_change(6, 4 * 9)}).delta_weights()

    with adapted.using([mix, AdapterMix()], "unmerged"):
        found = host(images)

    wide = nn.functional.conv2d(images[:1].float(), delta["layer.weight"])
    assert change.path == "layer"
    assert adapter.weight == 1
    torch.testing.assert_close(
        found[:1], (plain[:1].float() + wide).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5
    )
    assert torch.equal(found[1], plain[1])


def test_convolutions_that_compute_more_are_refused() -> None:
    """A weight that is standardised first is no sum of base and delta."""

    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            weight = self.weight - self.weight.mean()
            return nn.functional.conv2d(input, weight)

    (module,) = (m for m in discover(Host(Standardized(2, 2, 1))).modules.values() if m.kernel)

    assert module.refusal == "Standardized computes more than a convolution"


def test_tables_that_write_to_themselves_are_refused() -> None:
    """max_norm changes the base's weight in a forward, for everybody."""
    table = discover(Host(nn.Embedding(3, 4, max_norm=1.0))).modules["layer"]

    assert table.refusal is not None
    assert "max_norm" in table.refusal


def test_norms_over_several_axes_are_no_modules_of_adapters() -> None:
    """No trainer changes them, and their weight is no vector."""
    assert "layer" not in discover(Host(nn.LayerNorm((2, 3)))).modules
    assert "layer" not in discover(Host(nn.LayerNorm(2, elementwise_affine=False))).modules


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
@pytest.mark.parametrize("changed", ["lm_head", "model.embed_tokens"])
def test_a_tied_weight_changes_in_one_of_its_places(changed: str, apply: ApplyWord) -> None:
    """An adapted head leaves the embedding alone that shares its weight, and the reverse."""
    model = tiny_llama(torch.float64, tie_word_embeddings=True)
    adapted = attach(model)
    spec = adapted.spec.modules[changed]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    delta = DenseWeights(matrix=draw(*spec.shape, seed=1), scale=0.1)
    adapter = build_adapter(adapted.spec, "a", {changed: ModuleWeights.of(delta)})
    adapted.add(adapter)
    ids, hidden = torch.tensor([[3, 5]]), draw(1, 2, 64, seed=2)
    embedded, logits = model.model.embed_tokens(ids), model.lm_head(hidden)

    with adapted.using(AdapterMix.of({adapter: 1.0}), apply):
        found = model.model.embed_tokens(ids), model.lm_head(hidden)

    is_head = changed == "lm_head"
    assert torch.equal(found[0], embedded) == is_head
    assert torch.equal(found[1], logits) != is_head
    if is_head:
        assert_close(found[1], logits + 0.1 * hidden @ delta.matrix.mT)
    else:
        assert_close(found[0], embedded + 0.1 * delta.matrix[ids])


def test_a_base_may_compute_in_another_dtype_than_its_inputs() -> None:
    """Under autocast a linear module answers in bfloat16; the change is still summed wide."""
    delta = conv_change(6, 8)
    host, adapted, mix = attached(nn.Linear(8, 6), delta)
    x = draw(1, 8, seed=1, dtype=torch.float32)
    changed = (
        x @ build_adapter(adapted.spec, "b", {"layer": delta}).delta_weights()["layer.weight"].mT
    )

    with torch.autocast("cpu", torch.bfloat16):
        plain = host(x)
        with adapted.using(mix, "unmerged"):
            found = host(x)

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found, (plain.float() + changed).to(torch.bfloat16), rtol=0.02, atol=0.02
    )


def test_a_norm_has_no_gain() -> None:
    """No trainer gives it one, and for some norms it would scale a weight that is not there."""
    column = DenseWeights(matrix=draw(4, 1, seed=1), scale=1.0)
    gain = Gain(values=draw(4, seed=2), axis=GainAxis.OUTPUT)
    host, adapted, mix = attached(nn.LayerNorm(4).double(), ModuleWeights.of(column, gain))

    with (
        adapted.using(mix, "unmerged"),
        pytest.raises(UnsupportedModuleError, match="a norm has no DoRA magnitude"),
    ):
        host(draw(2, 4, seed=3))


def test_rows_that_nobody_can_tell_apart_are_an_error() -> None:
    """A table of positions is looked up once for all samples."""
    delta = DenseWeights(matrix=draw(5, 4, seed=1), scale=1.0)
    host, adapted, mix = attached(nn.Embedding(5, 4), ModuleWeights.of(delta))
    assert adapted.spec.modules["layer"].kind is ModuleKind.EMBEDDING

    with (
        adapted.using([mix, AdapterMix()], "unmerged"),
        pytest.raises(RoutingError, match="module 'layer' sees 1 rows for 2 mixes"),
    ):
        host(torch.arange(5)[None])

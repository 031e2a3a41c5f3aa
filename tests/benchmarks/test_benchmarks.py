"""Every benchmark, at a size at which its figures mean nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cost, fleet, images, layers, load, scale, steps, throughput
from benchmarks.fleet.extent import Extent
from benchmarks.scope import Scope
from tests.gateways.programs import Kind, program

NUM_PAIRS = 2


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    """The smallest scope there is."""
    return Scope(num_pairs=NUM_PAIRS, folder=tmp_path, is_small=True)


def test_cost_covers_every_way_of_applying_adapters(scope: Scope) -> None:
    """It compares our logits with PEFT's on the way, so its rows do the work they are named for."""
    names = [figure.name for figure in cost.run(scope)]

    assert names[:3] == ["attached, no adapter", "16 adapters", "one shared adapter, merged"]
    assert "4 mixes of 2 adapters" in names
    assert names[-1].startswith("PEFT")


def test_images_covers_both_kinds_of_denoiser(scope: Scope) -> None:
    """It compares our predictions with PEFT's on the way, convolutions included."""
    figures = images.run(scope)

    names = [figure.name for figure in figures]
    assert [name.split(": ")[1] for name in names if name.startswith("UNet")] == [
        name.split(": ")[1] for name in names if name.startswith("transformer")
    ]
    assert sum("PEFT" in name for name in names) == 4
    assert all(figure.num_pairs == NUM_PAIRS for figure in figures)


def test_layers_covers_every_kind_and_form(scope: Scope) -> None:
    """Each is checked against the dense delta on the way; the counted figures are exact."""
    figures = layers.run(scope)

    assert {figure.name.split(", ")[0] for figure in figures} == {
        "linear",
        "conv2d",
        "conv1d",
        "embedding",
        "layer norm",
    }
    assert len(figures) == 2 * (4 * 5 + 2 + 1)
    counted = {f.name: f.ratio.value for f in figures if f.num_pairs == 0}
    assert counted["conv2d, LoKr, w2 of low rank"] < 1
    assert counted["embedding, LoRA"] < 1


def test_scale_counts_bytes_exactly(scope: Scope) -> None:
    """Bytes are counted, not sampled, so even the smallest run must come out right."""
    figures = scale.run(scope)

    assert figures[0].verdict == "met"
    assert len(figures) == 4


def test_load_measures_known_and_new_kinds(scope: Scope) -> None:
    """The first adapter of a kind costs more than those after it; both are shown."""
    figures = load.run(scope)

    assert len(figures) == 4
    assert all(figure.num_pairs == NUM_PAIRS for figure in figures)


def test_steps_are_measured_while_adapters_load(scope: Scope) -> None:
    """A window without a step would say nothing."""
    (figure,) = steps.run(scope)

    assert figure.ratio.value > 0


def test_throughput_compares_few_and_many_streams(scope: Scope) -> None:
    """The server is the real one, in its own process, as is the client."""
    figures = throughput.run(scope)

    assert [figure.unit for figure in figures] == ["tokens/s"] * 2


def test_fleet_wants_room_for_all_that_callers_may_use_at_once(scope: Scope) -> None:
    """Routing may send all callers to one replica; refused requests would end a long run."""
    extent = Extent.of(scope)

    with pytest.raises(ValueError, match="room for more than 10, or have fewer callers"):
        replace(extent, num_callers=extent.room)


def test_fleet_compares_ways_of_routing(scope: Scope) -> None:
    """Replicas and gateway are real; each way of routing gives its figures."""
    if program(Kind.ENVOY) is None:
        pytest.skip("envoy is not installed")

    figures = fleet.run(scope)

    assert len(figures) == 4 * 4
    hits = {figure.name: figure.ratio.value for figure in figures if "hit memory" in figure.name}
    assert all(ratio > 0 for ratio in hits.values())  # how much above 1 is for longer runs to say

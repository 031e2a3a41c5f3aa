"""What has no exact form, and files that would not be the same adapter."""

import json
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lokr.layer import LoKrLayer, make_kron, make_weight_cp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lokr_core
from lokr_core.formats.convert import ConversionError, Layout, convert
from lokr_core.formats.convert.verify import first_difference
from lokr_core.spec import ModelSpec

SIZE = 12


def lora(path: str, rank: int = 2, **others: Tensor) -> dict[str, Tensor]:
    """Return a LoRA of scale 1.5, and other leaves beside it."""
    tensors = {
        "lora_up.weight": torch.full((SIZE, rank), 0.5),
        "lora_down.weight": torch.full((rank, SIZE), 0.5),
        "alpha": torch.tensor(1.5 * rank),
        **others,
    }
    return {f"{path}.{leaf}": tensor for leaf, tensor in tensors.items()}


def lokr(path: str, *shapes: tuple[int, int], alpha: float = 3.0) -> dict[str, Tensor]:
    """Return a LoKr of one or two low-rank factors: shapes of w1 or its parts, then of w2's."""
    leaves = {2: ("lokr_w1", "lokr_w2"), 3: ("lokr_w1", "lokr_w2_a", "lokr_w2_b")}.get(
        len(shapes), ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
    )
    tensors = {leaf: torch.full(shape, 0.5) for leaf, shape in zip(leaves, shapes, strict=True)}
    return {f"{path}.{leaf}": t for leaf, t in {**tensors, "alpha": torch.tensor(alpha)}.items()}


def loha(path: str, left: int, right: int) -> dict[str, Tensor]:
    """Return a LoHa whose halves have these ranks."""
    shapes = {
        "hada_w1_a": (SIZE, left),
        "hada_w1_b": (left, SIZE),
        "hada_w2_a": (SIZE, right),
        "hada_w2_b": (right, SIZE),
    }
    tensors = {f"{path}.{leaf}": torch.full(shape, 0.5) for leaf, shape in shapes.items()}
    return {**tensors, f"{path}.alpha": torch.tensor(1.0)}


def tucker(path: str, rank: int, *kernel: int) -> dict[str, Tensor]:
    """Return a LoKr whose w2 has a Tucker core."""
    return {
        f"{path}.lokr_w1": torch.full((2, 2), 0.5),
        f"{path}.lokr_t2": torch.full((rank, rank, *kernel), 0.5),
        f"{path}.lokr_w2_a": torch.full((rank, 6), 0.5),
        f"{path}.lokr_w2_b": torch.full((rank, 6), 0.5),
        f"{path}.alpha": torch.tensor(1.0),
    }


class Model(nn.Module):
    """Modules whose paths differ, and two whose flat names do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Linear(SIZE, SIZE)})
        self.a_b = nn.Linear(SIZE, SIZE)
        self.fc = nn.Linear(SIZE, SIZE)
        self.inner = nn.ModuleDict({"fc": nn.Linear(SIZE, SIZE)})
        self.conv1d = nn.Conv1d(SIZE, SIZE, 3)
        self.tall = nn.Conv2d(SIZE, SIZE, (3, 1))
        self.point = nn.Conv1d(SIZE, SIZE, 1)


@pytest.fixture
def spec() -> ModelSpec:
    """The modules of the model."""
    return lokr_core.attach(Model()).spec


REFUSED: dict[str, tuple[Layout, dict[str, Tensor], str]] = {
    "two paths of one flat name": (
        Layout.LYCORIS,
        lora("a.b") | lora("a_b"),
        "has the flat name 'lycoris_a_b', and so has 'a.b'",
    ),
    "scale 0 in LyCORIS": (
        Layout.LYCORIS,
        lora("fc") | {"fc.alpha": torch.tensor(0.0)},
        "alpha of 0",
    ),
    "several algorithms in PEFT": (Layout.PEFT, lora("fc") | loha("a_b", 2, 2), "one algorithm"),
    "biases alone in PEFT": (Layout.PEFT, {"fc.diff_b": torch.ones(SIZE)}, "no bias deltas"),
    "replacements alone in PEFT": (
        Layout.PEFT,
        {"fc.weight": torch.full((SIZE, SIZE), 3.0)},
        "replaced modules alone",
    ),
    "halves of two ranks in PEFT": (Layout.PEFT, loha("fc", 2, 3), "one rank for both halves"),
    "DoRA for some in PEFT": (
        Layout.PEFT,
        lora("fc", lora_magnitude_vector=torch.ones(SIZE)) | lora("a_b"),
        "unlike others",
    ),
    "two ranks in one LoKr in PEFT": (
        Layout.PEFT,
        lokr("fc", (3, 2), (2, 3), (4, 1), (1, 4)),
        "other forms",
    ),
    "a full w1 that PEFT would split": (
        Layout.PEFT,
        lokr("fc", (6, 1), (1, 6), (2, 1), (1, 2)) | lokr("a_b", (6, 6), (2, 1), (1, 2)),
        "other forms",
    ),
    "a base below a LoKr in PEFT": (
        Layout.PEFT,
        lokr("fc", (3, 3), (4, 4)) | {"fc.base_layer.bias": torch.full((SIZE,), 3.0)},
        "replaces nothing",
    ),
    "a core of rank 1 of a Conv1d in PEFT": (
        Layout.PEFT,
        tucker("conv1d", 1, 3),
        "core of rank 1 over a Conv1d",
    ),
    "a core of rank 1 of a tall window in PEFT": (
        Layout.PEFT,
        tucker("tall", 1, 3, 1),
        "window whose last size is 1",
    ),
    "a core of a window of size 1 in PEFT": (
        Layout.PEFT,
        tucker("point", 1, 1),
        "no Tucker core for a window of size 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_form_is_refused(name: str, spec: ModelSpec, tmp_path: Path) -> None:
    """Each for its own reason, which says why the layout cannot hold it."""
    layout, tensors, problem = REFUSED[name]
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(ConversionError, match=problem):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", layout, spec=spec)


@pytest.mark.parametrize(("path", "kernel"), [("conv1d", (3,)), ("tall", (3, 1))])
def test_a_core_of_a_higher_rank_is_one_of_peft(
    path: str, kernel: tuple[int, ...], spec: ModelSpec, tmp_path: Path
) -> None:
    """Only that of rank 1 is laid out so that PEFT's product of factors fails."""
    save_file(tucker(path, 2, *kernel), tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out", Layout.PEFT, spec=spec)
    model = peft.PeftModel.from_pretrained(Model(), str(tmp_path / "out"))
    layer = model.get_submodule(f"base_model.model.{path}")
    assert isinstance(layer, LoKrLayer)
    shape = layer.get_delta_weight("default").shape

    assert shape == spec.modules[path].weight.unflatten(1, (SIZE, *kernel)).shape


def test_peft_still_fails_for_a_core_of_rank_1() -> None:
    """Once it does not, the refusal may go."""
    core, side = torch.ones(1, 1, 3, 1), torch.ones(1, 4)
    w2 = make_weight_cp(core, side, side)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="view size"):
        make_kron(torch.ones(3, 3), w2)  # type: ignore[no-untyped-call]


def test_components_have_names_of_their_own(tmp_path: Path) -> None:
    """Flat names tell the parts of a pipeline apart; PEFT has one model."""
    parts = {"unet": Model(), "text_encoder": Model(), "vae": Model()}
    spec = lokr_core.attach(parts).spec
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(lora("unet.fc") | lora("text_encoder.fc"), source)
    convert(source, out, Layout.LYCORIS, spec=spec)

    assert {key.partition(".")[0] for key in load_file(out)} == {"lora_unet_fc", "lora_te1_fc"}
    with pytest.raises(ConversionError, match="give the folder of that component"):
        convert(source, tmp_path / "peft", Layout.PEFT, spec=spec)
    save_file(lora("vae.fc"), source)
    with pytest.raises(ConversionError, match="no name for component 'vae'"):
        convert(source, tmp_path / "vae.safetensors", Layout.LYCORIS, spec=spec)


def test_a_name_that_ends_another_is_a_pattern(spec: ModelSpec, tmp_path: Path) -> None:
    """PEFT takes a plain name for every module that it ends."""
    save_file(lora("fc"), tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out", Layout.PEFT, spec=spec)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())

    assert config["target_modules"] == "fc"
    assert isinstance(config["target_modules"], str)


def test_biases_that_were_trained_are_told(spec: ModelSpec, tmp_path: Path) -> None:
    """PEFT saves them again only if its configuration says so."""
    ones = torch.full((SIZE,), 3.0)
    save_file(lora("fc") | {"a_b.bias": ones}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out", Layout.PEFT, spec=spec)

    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["bias"] == "all"


@pytest.mark.parametrize(
    ("change", "module"),
    [
        ({"fc.lora_up.weight": torch.full((SIZE, 2), 0.25)}, "fc"),
        ({"fc.alpha": torch.tensor(3.5)}, "fc"),
        ({"fc.diff_b": torch.ones(SIZE)}, "fc"),
        (lora("a_b"), "a_b"),
        (lora("fc", 3), "fc"),
        (lora("fc", dora_scale=torch.ones(SIZE, 1)), "fc"),
        (lora("fc", dora_scale=torch.ones(1, SIZE)), "fc"),
    ],
)
def test_a_difference_is_found(
    change: dict[str, Tensor], module: str, spec: ModelSpec, tmp_path: Path
) -> None:
    """A file that is not the same adapter must never get its name."""
    save_file(lora("fc"), tmp_path / "one.safetensors")
    save_file(lora("fc") | change, tmp_path / "two.safetensors")
    one, two = (
        lokr_core.read_adapter(tmp_path / f"{name}.safetensors", spec) for name in ("one", "two")
    )

    assert first_difference(one, one) is None
    assert first_difference(one, two) == module


def test_a_file_that_is_not_the_same_is_removed(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever went wrong in writing is found in reading."""
    save_file(lora("fc"), tmp_path / "in.safetensors")
    monkeypatch.setattr(
        "lokr_core.formats.convert.canonical.alpha_tensor", lambda _: torch.tensor(9.0)
    )
    with pytest.raises(ConversionError, match="does not read back"):
        convert(
            tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec
        )

    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_file_that_cannot_be_read_back_is_refused(tmp_path: Path) -> None:
    """Such as one whose alpha is beyond every float; the reader's own words are kept."""
    spec = lokr_core.attach(Model().double()).spec  # in float32 the scale itself is refused
    save_file(lora("fc"), tmp_path / "in.safetensors")
    options = lokr_core.ReadOptions(overrides=lokr_core.ScaleOverrides(scale=1e308))
    with pytest.raises(ConversionError, match=r"reads back as: .*fc\.alpha"):
        convert(
            tmp_path / "in.safetensors",
            tmp_path / "out.safetensors",
            Layout.CANONICAL,
            spec=spec,
            options=options,
        )


def test_metadata_of_the_base_is_kept(spec: ModelSpec, tmp_path: Path) -> None:
    """What a reader would make a scale of is not."""
    of_base, of_trainer = {"modelspec.architecture": "x"}, {"ss_network_module": "lycoris"}
    metadata = {**of_base, **of_trainer, "ss_network_dim": "4"}
    save_file(lora("fc"), tmp_path / "in.safetensors", metadata)
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.LYCORIS, spec=spec)
    header = (tmp_path / "out.safetensors").read_bytes()

    assert b'"__metadata__": {"modelspec.architecture": "x"}' in header


def test_what_equals_the_base_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """The reader leaves it out as well, so it is the same adapter."""
    model = Model()
    spec = lokr_core.attach(model).spec
    same = {"a_b.weight": model.a_b.weight.detach().clone()}
    save_file(lora("fc") | same, tmp_path / "in.safetensors")
    done = convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec
    )

    assert {key.partition(".")[0] for key in load_file(tmp_path / "out.safetensors")} == {"fc"}
    assert done.num_modules == 1
    assert "equal the base's" in done.warnings[0]


def test_a_doubtful_scale_is_told_of(spec: ModelSpec, tmp_path: Path) -> None:
    """It is written as if it were certain, so this is the last chance to see that it is not."""
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "32"}
    save_file(lokr("fc", (3, 3), (4, 4)), tmp_path / "in.safetensors", metadata)
    done = convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec
    )

    assert "0.09375" in done.warnings[0]

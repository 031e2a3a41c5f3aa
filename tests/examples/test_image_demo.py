"""The demo's image part, with hardly any training and no server."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

import lokr_core
from examples.demo.budget import Budget
from examples.demo.images.autoencoder import transparent_autoencoder
from examples.demo.images.checks import (
    brightness,
    colour_name,
    difference,
    whiteness,
)
from examples.demo.images.components import MAX_TOKENS, untrained_pipeline
from examples.demo.images.denoising import lessons
from examples.demo.images.gallery import Title
from examples.demo.images.mixes import EVERY_MIX, FADE, HALVES, PROMPTS
from examples.demo.images.pictures import SIZE, draw_picture, to_tensor
from examples.demo.images.scenes import COLOURS, PLACES, Scene, Style, Thing
from examples.demo.images.sheet import contact_sheet
from examples.demo.images.train_pipeline import train_pipeline
from examples.demo.images.train_styles import NIGHT, WINTER, train_styles
from examples.demo.recipe import Marker

ONE_STEP = Budget(max_steps=1, max_seconds=60)
SCENES = tuple(
    Scene(thing=thing, colour=colour, place=place)
    for thing, colour, place in itertools.product(Thing, COLOURS, PLACES)
)


@pytest.fixture
def no_progress_bars() -> Iterator[None]:
    """Loading and saving without a word."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()
    transformers_logging.enable_progress_bar()


def test_every_scene_has_a_caption_of_its_own() -> None:
    """Two scenes of one caption would teach the pipeline to blur them."""
    assert len({scene.caption for scene in SCENES}) == len(SCENES)
    assert set(PROMPTS) <= {scene.caption for scene in SCENES}


@pytest.mark.parametrize("style", [Style.DAY, Style.WINTER])
def test_the_colour_of_a_thing_is_seen_by_day_and_in_winter(style: Style) -> None:
    """The demo's own check must pass on perfect pictures, or it says nothing of others."""
    pictures = {scene: draw_picture(scene, style) for scene in SCENES}

    missed = [s.caption for s, picture in pictures.items() if colour_name(picture) != s.colour]

    assert missed == []


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_styles_are_told_apart_by_what_the_demo_measures(scene: Scene) -> None:
    """An adapter that has learnt its style passes, and one that has not does not."""
    day, night, winter = (draw_picture(scene, style) for style in Style)

    assert brightness(night) < 0.75 * brightness(day)
    assert whiteness(winter) > max(0.7, whiteness(day))
    assert difference(day, day) == 0
    assert difference(day, night) > 100


def test_lessons_carry_pictures_and_captions() -> None:
    """A share of the pictures has none, or guidance had nothing to compare with."""
    some = list(itertools.islice(lessons(Style.DAY), 20))

    captions = [caption for lesson in some for caption in lesson.captions]
    assert 0 < captions.count("") < len(captions) / 3
    assert some[0].pictures.shape == (len(some[0].captions), 3, SIZE, SIZE)
    assert some[0].pictures.abs().max() <= 1


def test_the_autoencoder_passes_pictures_through() -> None:
    """What it lost, no training could bring back."""
    vae = transparent_autoencoder(SIZE)
    pictures = to_tensor([draw_picture(scene, Style.NIGHT) for scene in SCENES])

    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.sample()
        decoded = vae.decode(latents).sample

    torch.testing.assert_close(latents, pictures, atol=1e-3, rtol=0)
    torch.testing.assert_close(decoded, pictures, atol=1e-3, rtol=0)


def test_every_caption_fits_the_tokenizer() -> None:
    """A prompt that is cut off loses its place, which stands last."""
    tokenizer = untrained_pipeline().tokenizer

    ids = [tokenizer(scene.caption)["input_ids"] for scene in SCENES]

    assert all(len(row) <= MAX_TOKENS for row in ids)
    assert len(set(map(tuple, ids))) == len(SCENES)


@pytest.mark.usefixtures("no_progress_bars")
def test_trained_pipeline_and_adapters_are_read_back(tmp_path: Path) -> None:
    """The folders are what the server is given; both adapters must bind to the UNet."""
    model, adapters = tmp_path / "model", tmp_path / "adapters"

    train_pipeline(model, Console(quiet=True), ONE_STEP)
    train_styles(model, adapters, Console(quiet=True), ONE_STEP)

    pipeline = StableDiffusionXLPipeline.from_pretrained(model)
    adapted = lokr_core.attach(pipeline)
    read = [lokr_core.read_adapter(adapters / name, adapted.spec) for name in (NIGHT, WINTER)]
    assert [adapter.ref.adapter_id for adapter in read] == ["night", "winter"]
    assert all(path.startswith("unet.") for adapter in read for path in adapter.modules())


def test_the_fade_goes_from_one_adapter_to_the_other() -> None:
    """Five weights, whose middle is the half and half of the first part."""
    assert len(FADE) == 5
    assert FADE[2] == HALVES
    assert all(mix.night + mix.winter == 1 for mix in FADE)
    assert HALVES.label == "night*0.5 + winter*0.5"


def test_the_contact_sheet_holds_every_picture() -> None:
    """A picture that is asked for and not shown would be work for nothing."""
    scenes = {scene.caption: scene for scene in SCENES}
    pictures = {
        Title(prompt=prompt, mix=mix): draw_picture(scenes[prompt], Style.DAY)
        for prompt in PROMPTS
        for mix in EVERY_MIX
    }

    sheet = contact_sheet(pictures)

    assert sheet.width > len(FADE) * SIZE
    assert sheet.height > 2 * len(PROMPTS) * SIZE


def test_a_marker_forgets_when_the_recipe_changes(tmp_path: Path) -> None:
    """What an older recipe made must not be shown as the work of a newer one."""
    source = tmp_path / "source.py"
    source.write_text("one")
    Marker.of(tmp_path, [source]).set()

    assert Marker.of(tmp_path, [source]).is_set

    source.write_text("two")

    assert not Marker.of(tmp_path, [source]).is_set

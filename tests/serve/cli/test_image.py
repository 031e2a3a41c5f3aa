"""``lokr-serve image``, against a server of a tiny real pipeline."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.cli.conftest import Run
from tests.serve.running import Connection

NOBODY = ("--server", "127.0.0.1:1", "--timeout", "5")
SHORT = ("--prompt", "a cat", "--size", "32x16", "--steps", "2", "--seed", "7")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of this test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_image_is_written_and_its_path_printed(
    run: Run, shared_image_server: Connection, in_folder: Path
) -> None:
    """Its output can be piped on."""
    outcome = run("image", *SHORT, "--server", shared_image_server.addresses.listen)

    assert (outcome.code, outcome.out, outcome.err) == (0, "image-7.png\n", "")
    with Image.open(in_folder / "image-7.png") as image:
        assert (image.format, image.size) == ("PNG", (32, 16))
    again = run("image", *SHORT, "--server", shared_image_server.addresses.listen)
    assert again.code == 2
    assert "--force" in again.err


def test_everything_that_can_be_asked_for_is(
    run: Run, shared_image_server: Connection, in_folder: Path
) -> None:
    """Adapters, weights of blocks, schedules, guidance, start image, and all that comes back."""
    Image.new("RGB", (32, 16), "red").save("start.png")
    outcome = run(
        *("image", "--prompt", "a cat", "--negative-prompt", "a dog"),
        *("--adapter", "ink*0.5", "--adapter", "oil"),
        *("--module-weight", "oil@unet.down_blocks.*=0.2", "--schedule", "ink@0=0,1=1"),
        *("--size", "32x16", "--steps", "4", "--guidance", "3", "--seed", "5"),
        *("--scheduler", "EulerDiscreteScheduler", "--num-images", "2"),
        *("--init-image", "start.png", "--strength", "0.75"),
        *("--output", "{index}.webp", "--quality", "80", "--latents", "--metadata"),
        *("--preview-every", "1", "--json", "--server", shared_image_server.addresses.listen),
    )
    events = [json.loads(line) for line in outcome.out.splitlines()]
    started, *_, finished = events

    assert outcome.code == 0, outcome.err
    assert (started["event"], finished["event"]) == ("started", "finished")
    assert started["mix_name"].startswith("ink*0.5+oil@")
    assert (started["scheduler"], started["num_steps"]) == ("EulerDiscreteScheduler", 3)
    images = [event for event in events if event["event"] == "image"]
    assert [image["paths"] for image in images] == [
        ["0.webp", "0.safetensors"],
        ["1.webp", "1.safetensors"],
    ]
    assert {path.name for path in in_folder.iterdir()} == {
        "start.png",
        *("0.webp", "0.safetensors", "1.webp", "1.safetensors"),
    }
    with Image.open(in_folder / "1.webp") as image:
        assert (image.format, image.size) == ("WEBP", (32, 16))
        assert image.getexif()


def test_a_request_that_fails_leaves_no_preview(
    run: Run, shared_image_server: Connection, in_folder: Path
) -> None:
    """The next run must not be told that a file is in its way."""
    outcome = run(
        *("image", "--prompt", "x", "--size", "16x16", "--steps", "900", "--timeout", "1"),
        *("--preview-every", "1", "--server", shared_image_server.addresses.listen),
    )

    assert outcome.code == 1
    assert not list(in_folder.iterdir())


def test_people_see_how_far_it_is(
    run: Run, shared_image_server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal there is a bar, the mix and the time, beside the path and not in it."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = run(
        *("image", *SHORT, "--preview-every", "1"),
        *("--server", shared_image_server.addresses.listen),
    )

    assert outcome.out == "image-7.png\n"
    assert "base model (" in outcome.err
    assert "32x16, PNDMScheduler, seed 7" in outcome.err
    assert "2 steps in" in outcome.err
    assert "2/2" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--size", "32"), "WIDTHxHEIGHT"),
        (("--size", "9" * 5000 + "x16"), "WIDTHxHEIGHT"),
        (("--strength", "0.5"), "--init-image"),
        (("--init-image", "nowhere.png"), "nowhere.png"),
        (("--adapter", "a*b"), "a*b"),
        (("--schedule", "ink@0"), "ID@STEP=FACTOR"),
        (("--schedule", "ink@0=1"), "'ink' is not one of the request's adapters"),
        (("--steps", "0"), "num_steps"),
        (("--num-images", "2", "--output", "a.png"), "{index}"),
        (("--output", "a.bmp"), "--format"),
        (("--output", "no/a.png"), "no is no folder"),
        (("--format", "raw", "--metadata"), "output.metadata"),
    ],
)
def test_mistakes_in_usage_are_found_before_a_server_is_called(
    run: Run, arguments: tuple[str, ...], word: str
) -> None:
    """They are the caller's, and exit with 2."""
    outcome = run("image", "--prompt", "x", *arguments, *NOBODY)

    assert (outcome.code, outcome.out) == (2, "")
    assert word in outcome.err


def test_a_server_that_is_not_there_is_one_line_of_error(run: Run, in_folder: Path) -> None:
    """No traceback, no file, and an exit code that differs from a mistake in usage."""
    outcome = run("image", "--prompt", "x", *NOBODY)

    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert not list(in_folder.iterdir())

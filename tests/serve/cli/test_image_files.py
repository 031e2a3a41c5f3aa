"""The files that images go to."""

from pathlib import Path

import pytest

from lokr_core import LokrError
from lokr_serve.cli.image_files import ImageFiles, choose_format, choose_pattern, image_files
from lokr_serve.errors import SettingsError
from lokr_serve.types import GeneratedImage, ImageFormat, ImageOutput, ImagePreview

PREVIEW = ImagePreview(index=0, step=1, width=1, height=1, data=b"preview")


def image(index: int = 0, latents: bytes | None = None) -> GeneratedImage:
    """Return a finished image."""
    return GeneratedImage(
        index=index,
        seed=7 + index,
        format=ImageFormat.PNG,
        width=1,
        height=1,
        data=b"image",
        latents=latents,
    )


@pytest.mark.parametrize(
    ("wanted", "output", "expected"),
    [
        (None, None, ImageFormat.PNG),
        (None, "a.PNG", ImageFormat.PNG),
        (None, "a.webp", ImageFormat.WEBP),
        (None, "a.jpeg", ImageFormat.JPEG),
        (None, "a.rgb", ImageFormat.RAW),
        (ImageFormat.JPEG, None, ImageFormat.JPEG),
        (ImageFormat.JPEG, "a.jpg", ImageFormat.JPEG),
        (ImageFormat.JPEG, "picture", ImageFormat.JPEG),
    ],
)
def test_the_name_of_a_file_tells_its_format(
    wanted: ImageFormat | None, output: str | None, expected: ImageFormat
) -> None:
    """Nobody wants to say it twice."""
    assert choose_format(wanted, None if output is None else Path(output)) is expected


@pytest.mark.parametrize(
    ("wanted", "output", "problem"),
    [
        (None, "a.bmp", "tells no format"),
        (None, "picture", "tells no format"),
        (ImageFormat.JPEG, "a.png", "does not end like a file of jpeg"),
    ],
)
def test_a_name_that_tells_another_format_is_refused(
    wanted: ImageFormat | None, output: str, problem: str
) -> None:
    """A JPEG that is called PNG is a trap for whoever opens it."""
    with pytest.raises(SettingsError, match=problem):
        choose_format(wanted, Path(output))


def test_images_without_a_name_are_named_by_their_seeds() -> None:
    """So that one run does not get in the way of the next."""
    files = image_files(choose_pattern(None, ImageFormat.WEBP), [7, 8], may_overwrite=False)

    assert files.paths == (Path("image-7.webp"), Path("image-8.webp"))


def test_names_have_places_for_index_and_seed(tmp_path: Path) -> None:
    """Several images of one request need several names."""
    pattern = choose_pattern(tmp_path / "cat-{index}-{seed}.png", ImageFormat.PNG)
    files = image_files(pattern, [7, 8], may_overwrite=False)

    assert [path.name for path in files.paths] == ["cat-0-7.png", "cat-1-8.png"]
    files.require_free(ImageOutput())
    with pytest.raises(SettingsError, match=r"\{index\}"):
        image_files(tmp_path / "cat.png", [7, 8], may_overwrite=False).require_free(ImageOutput())


@pytest.mark.parametrize("name", ["cat.png", "cat.safetensors", "cat.preview.jpg"])
def test_files_that_are_there_are_kept_unless_forced(tmp_path: Path, name: str) -> None:
    """A second run must not cost the first one's picture; it is told before anything is made."""
    (tmp_path / name).write_text("old")
    output = ImageOutput(latents=True, preview_interval=1)
    path = tmp_path / "cat.png"

    with pytest.raises(SettingsError, match="--force"):
        image_files(path, [7], may_overwrite=False).require_free(output)
    image_files(path, [7], may_overwrite=True).require_free(output)


def test_a_folder_that_is_not_there_is_told_first(tmp_path: Path) -> None:
    """An image that was made and cannot be written is lost."""
    files = image_files(tmp_path / "no" / "cat.png", [7], may_overwrite=False)

    with pytest.raises(SettingsError, match="is no folder"):
        files.require_free(ImageOutput())


def test_previews_are_there_for_a_while(tmp_path: Path) -> None:
    """Nothing is left behind but what was asked for."""
    files = image_files(tmp_path / "cat.png", [7], may_overwrite=False)
    for _ in range(2):
        assert files.write_preview(PREVIEW).read_bytes() == b"preview"
    paths = files.write_image(image(latents=b"latents"))

    files.remove_previews()

    assert [path.read_bytes() for path in paths] == [b"image", b"latents"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_what_lies_beside_images_is_named_by_all_of_their_name(tmp_path: Path) -> None:
    """An index after a dot looks like a suffix, and would give all latents one name."""
    files = image_files(tmp_path / "cat.{index}", [7, 8], may_overwrite=False)
    files.require_free(ImageOutput(latents=True, preview_interval=1))
    written = [files.write_image(image(index, latents=b"latents")) for index in (0, 1)]

    assert [[path.name for path in paths] for paths in written] == [
        ["cat.0", "cat.0.safetensors"],
        ["cat.1", "cat.1.safetensors"],
    ]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["cat.safetensors", "cat"], "also what lies beside"),
        (["folder"], "is a folder"),
        (["x" * 250 + ".{index}"], "cannot be written"),
    ],
)
def test_names_that_cannot_be_written_are_told_first(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    """An image that was made and cannot be written is lost, forced or not."""
    (tmp_path / "folder").mkdir()
    files = ImageFiles(paths=tuple(tmp_path / name for name in names), may_overwrite=True)

    with pytest.raises(SettingsError, match=problem):
        files.require_free(ImageOutput(latents=True))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here takes no files")
def test_a_folder_that_takes_no_files_is_told_first() -> None:
    """That it is there is not enough, not even for root."""
    files = image_files(Path("/proc/self/cat.png"), [7], may_overwrite=False)

    with pytest.raises(SettingsError, match="takes no files"):
        files.require_free(ImageOutput())


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_name_of_no_file_is_refused(name: str) -> None:
    """Such as an empty variable of a script."""
    with pytest.raises(SettingsError, match="names no file"):
        choose_pattern(Path(name), ImageFormat.PNG)


def test_names_may_be_as_long_as_the_file_system_lets_them(tmp_path: Path) -> None:
    """What a file is called while it is written must not be longer than its own name."""
    path = tmp_path / ("x" * 251 + ".png")
    files = image_files(path, [7], may_overwrite=False)

    assert files.write_image(image()) == [path]


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    """Images take minutes, and another run may have been faster."""
    files = image_files(tmp_path / "cat.png", [7], may_overwrite=False)
    files.require_free(ImageOutput())
    (tmp_path / "cat.png").write_text("other")

    with pytest.raises(SettingsError, match="--force"):
        files.write_image(image())
    assert (tmp_path / "cat.png").read_text() == "other"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """No half of an image, and no traceback."""
    preview = tmp_path / "cat.preview.jpg"
    preview.mkdir()
    gone = image_files(tmp_path / "gone" / "cat.png", [7], may_overwrite=True)

    with pytest.raises(LokrError, match="cannot be written"):
        image_files(tmp_path / "cat.png", [7], may_overwrite=True).write_preview(PREVIEW)
    with pytest.raises(LokrError, match="cannot be written"):
        gone.write_image(image())
    assert list(tmp_path.iterdir()) == [preview]

"""Images, previews and latents as bytes, and back."""

import io

import pytest
import safetensors.torch
import torch
from PIL import ExifTags, Image

from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.encode import (
    MAX_SIDES,
    encode_image,
    encode_latents,
    encode_preview,
    require_metadata_fits,
    require_size_fits,
)
from lokr_serve.types import ImageFormat, ImageOutput

SIZE = (40, 24)


def picture(mode: str = "RGB") -> Image.Image:
    """Return a picture in which no two columns and no two rows are equal."""
    across, down = Image.linear_gradient("L").resize(SIZE), Image.radial_gradient("L").resize(SIZE)
    return Image.merge("RGB", (across, down, across.transpose(Image.Transpose.ROTATE_180))).convert(
        mode
    )


def decoded(data: bytes) -> Image.Image:
    """Return the image of a file."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP])
def test_lossless_formats_give_every_pixel_back(image_format: ImageFormat) -> None:
    """The default must not lose what the steps have paid for."""
    data = encode_image(picture(), ImageOutput(format=image_format), {})

    assert decoded(data).format == image_format.name
    assert decoded(data).tobytes() == picture().tobytes()


@pytest.mark.parametrize("image_format", [ImageFormat.WEBP, ImageFormat.JPEG])
def test_a_lower_quality_takes_fewer_bytes(image_format: ImageFormat) -> None:
    """Who asks for a quality wants a small file."""
    sizes = [
        len(encode_image(picture(), ImageOutput(format=image_format, quality=quality), {}))
        for quality in (10, 95)
    ]

    assert sizes[0] < sizes[1]


def test_jpeg_has_a_good_quality_of_its_own() -> None:
    """Unset is not the lowest."""
    unset = encode_image(picture(), ImageOutput(format=ImageFormat.JPEG), {})

    assert unset == encode_image(picture(), ImageOutput(format=ImageFormat.JPEG, quality=90), {})


def test_raw_pixels_come_row_by_row() -> None:
    """Whoever reads them has nothing but the size to go by."""
    data = encode_image(picture(), ImageOutput(format=ImageFormat.RAW), {})

    assert Image.frombytes("RGB", SIZE, data).tobytes() == picture().tobytes()


def test_other_modes_become_rgb() -> None:
    """A pipeline may give grey pictures; clients get what the wire promises."""
    data = encode_image(picture("L"), ImageOutput(format=ImageFormat.RAW), {})

    assert len(data) == 3 * SIZE[0] * SIZE[1]


TEXTS = ['{"prompt": "a cat"}', '{"prompt": "un café"}', '{"prompt": "кот 猫 🐈"}']


@pytest.mark.parametrize("text", TEXTS)
def test_png_carries_metadata_in_any_script(text: str) -> None:
    """A prompt is not always in Latin letters."""
    data = encode_image(picture(), ImageOutput(), {"Software": "lokr-serve", "Comment": text})

    assert decoded(data).info == {"Software": "lokr-serve", "Comment": text}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "output",
    [
        ImageOutput(format=ImageFormat.WEBP),
        ImageOutput(format=ImageFormat.WEBP, quality=80),
        ImageOutput(format=ImageFormat.JPEG),
    ],
)
def test_webp_and_jpeg_carry_metadata_in_any_script(output: ImageOutput, text: str) -> None:
    """Viewers and galleries read a user comment of EXIF."""
    data = encode_image(picture(), output, {"Software": "lokr-serve", "Comment": text})
    exif = decoded(data).getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    encoding = "ascii" if comment[:8] == b"ASCII\0\0\0" else "utf-16-be"

    assert exif[ExifTags.Base.Software] == "lokr-serve"
    assert comment[8:].decode(encoding) == text


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_an_image_carries_nothing_unless_asked(image_format: ImageFormat) -> None:
    """A prompt may be private."""
    output = ImageOutput(format=image_format)
    data = encode_image(picture(), output, {})

    assert b"Exif" not in data
    assert b"tEXt" not in data


def test_metadata_that_a_jpeg_cannot_hold_is_refused() -> None:
    """To drop it without a word would leave an image that says nothing of itself."""
    metadata = {"Software": "lokr-serve", "Comment": "x" * 70_000}
    output = ImageOutput(format=ImageFormat.JPEG, metadata=True)

    with pytest.raises(InvalidRequestError, match="PNG or WebP") as caught:
        encode_image(picture(), output, metadata)
    assert caught.value.field == "output.metadata"
    require_metadata_fits(ImageOutput(metadata=True), metadata)


@pytest.mark.parametrize("image_format", [ImageFormat.WEBP, ImageFormat.JPEG])
@pytest.mark.parametrize("quality", [None, 80])
def test_sides_that_a_format_cannot_have_are_refused(
    image_format: ImageFormat, quality: int | None
) -> None:
    """The check must be as strict as the encoder, or the image is made and lost."""
    output = ImageOutput(format=image_format, quality=quality)
    most = MAX_SIDES[image_format]
    require_size_fits(output, most, 1)
    require_size_fits(ImageOutput(), most + 1, 1)

    assert encode_image(Image.new("RGB", (most, 1)), output, {})
    with pytest.raises((ValueError, OSError)):
        encode_image(Image.new("RGB", (1, most + 1)), output, {})
    with pytest.raises(InvalidRequestError, match="ask for PNG or raw") as caught:
        require_size_fits(output, 1, most + 1)
    assert caught.value.field == "output.format"


def test_metadata_of_the_most_bytes_fits_a_jpeg() -> None:
    """The check must not be stricter than the format, nor laxer."""
    output = ImageOutput(format=ImageFormat.JPEG, metadata=True)
    metadata = {"Software": "lokr-serve", "Comment": "x" * 65_400}
    require_metadata_fits(output, metadata)

    assert decoded(encode_image(picture(), output, metadata)).size == SIZE


def test_previews_are_smaller_files_of_the_same_size() -> None:
    """They are sent while the image is made, perhaps at every step."""
    data = encode_preview(picture())

    assert (decoded(data).format, decoded(data).size) == ("JPEG", SIZE)
    assert len(data) < len(encode_image(picture(), ImageOutput(format=ImageFormat.JPEG), {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_come_back_as_they_were(dtype: torch.dtype) -> None:
    """Someone may go on from them."""
    latents = torch.randn(4, 8, 6, dtype=dtype).transpose(1, 2)  # not contiguous
    read = safetensors.torch.load(encode_latents(latents))

    assert list(read) == ["latents"]
    torch.testing.assert_close(read["latents"], latents, rtol=0, atol=0)

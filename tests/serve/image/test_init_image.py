"""Init images: what is read, and what is refused before it costs anything."""

import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.init_image import MAX_JPEG_SCANS, decode_init_image
from tests.serve.image.image_files import (
    animation,
    chunk,
    encoded,
    jpeg_of_size,
    one_transparent_pixel,
    picture,
    png,
    profile_of,
    riff,
    transparent_palette,
    webp_x,
)

MAX_PIXELS = 64 * 64


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture()),
        encoded(picture(), "WEBP", lossless=True),
        encoded(picture("RGBA")),
        encoded(picture("RGBA"), "WEBP", lossless=True, exact=True),
    ],
    ids=["png", "webp", "opaque-png-with-alpha", "opaque-webp-with-alpha"],
)
def test_a_lossless_file_is_read_to_the_last_bit(data: bytes) -> None:
    """An alpha channel that hides nothing is no reason to refuse a screenshot."""
    image = decode_init_image(data, MAX_PIXELS)

    assert image.mode == "RGB"
    assert image.tobytes() == picture().tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_every_eight_bit_kind_of_pixel_becomes_rgb(mode: str) -> None:
    """Pipelines take RGB; grey and palettes lose nothing on the way."""
    source = picture(mode)

    image = decode_init_image(encoded(source), MAX_PIXELS)

    assert image.tobytes() == source.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_is_read_as_pillow_reads_it(mode: str) -> None:
    """Photographs come as JPEG."""
    data = encoded(picture(mode), "JPEG")

    image = decode_init_image(data, MAX_PIXELS)

    with Image.open(BytesIO(data)) as expected:
        assert image.tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_of_a_camera_is_honoured(file_format: str, orientation: int) -> None:
    """A phone's upright picture lies on its side in the file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), file_format, exif=exif.tobytes(), lossless=True)

    image = decode_init_image(data, MAX_PIXELS)

    assert image.size == ((8, 16) if 5 <= orientation <= 8 else (16, 8))
    with Image.open(BytesIO(data)) as stored:
        turned = stored.transpose(TURNS[orientation]) if orientation in TURNS else stored
        assert image.tobytes() == turned.convert("RGB").tobytes()


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_nothing_of_the_files_metadata_travels_on() -> None:
    """What a camera notes of its owner must not end up in a made image."""
    exif = Image.Exif()
    exif[0x013B] = "its owner"
    data = encoded(picture(), "JPEG", exif=exif.tobytes(), comment=b"secret")

    assert decode_init_image(data, MAX_PIXELS).info == {}


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"hello", "is not a PNG, JPEG or WebP"),
    "gif": (lambda: encoded(picture("P"), "GIF"), "is not a PNG, JPEG or WebP"),
    "tiff": (lambda: encoded(picture(), "TIFF"), "is not a PNG, JPEG or WebP"),
    "bmp": (lambda: encoded(picture(), "BMP"), "is not a PNG, JPEG or WebP"),
    "wav": (lambda: b"RIFF\0\0\0\0WAVEfmt ", "is not a PNG, JPEG or WebP"),
    "png-signature-alone": (lambda: b"\x89PNG\r\n\x1a\n", "broken or cut short"),
    "jpeg-signature-alone": (lambda: b"\xff\xd8\xff", "broken or cut short"),
    "webp-signature-alone": (lambda: b"RIFF\0\0\0\0WEBP", "broken or cut short"),
    "webp-vp8-header-cut": (lambda: riff((b"VP8 ", b"\0\0")), "broken or cut short"),
    "webp-vp8l-header-cut": (lambda: riff((b"VP8L", b"/")), "broken or cut short"),
    "webp-vp8x-header-cut": (lambda: riff((b"VP8X", b"\0\0")), "broken or cut short"),
    "webp-of-another-chunk": (lambda: riff((b"ANIM", b"\0" * 40)), "does not start with"),
    "png-half": (lambda: encoded(picture())[:60], "broken or cut short"),
    "jpeg-half": (lambda: encoded(picture(), "JPEG")[:-20], "broken or cut short"),
    "webp-half": (lambda: encoded(picture(), "WEBP")[:-20], "broken or cut short"),
    "png-without-pixels": (lambda: png(4, 4), "broken or cut short"),
    "png-without-its-palette": (
        lambda: png(4, 4, chunk(b"IDAT", zlib.compress(bytes(4 * 5))), colour=3),
        "no palette",
    ),
    "png-of-no-width": (lambda: png(0, 4, chunk(b"IDAT", b"")), "broken or cut short"),
    "png-wide": (lambda: encoded(picture(size=(65, 64))), "has 65 x 64 pixels, more than 4096"),
    "png-bomb": (
        lambda: png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(bytes(2**20)))),
        "has 2147483647 x 2147483647 pixels",
    ),
    "jpeg-bomb": (lambda: jpeg_of_size(65500, 65500), "has 65500 x 65500 pixels"),
    "webp-vp8x-bomb": (lambda: webp_x(2**24, 255), "has 16777216 x 255 pixels"),
    "webp-vp8-bomb": (
        lambda: riff((b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF))),
        "has 16383 x 16383 pixels",
    ),
    "webp-vp8l-bomb": (
        lambda: riff((b"VP8L", b"/" + struct.pack("<I", 0xFFFFFFF) + bytes(8))),
        "has 16384 x 16384 pixels",
    ),
    "jpeg-scans": (
        lambda: encoded(picture(), "JPEG") + b"\xff\xda" * MAX_JPEG_SCANS,
        f"has {MAX_JPEG_SCANS + 1} scans",
    ),
    "png-16-bit": (lambda: png(4, 4, depth=16), "has 16 bits per channel"),
    "png-grey-16-bit": (lambda: encoded(Image.new("I;16", (4, 4))), "has 16 bits per channel"),
    "jpeg-cmyk": (lambda: encoded(picture("CMYK"), "JPEG"), "its pixels are CMYK"),
    "png-animated": (lambda: animation("PNG"), "is animated"),
    "webp-animated": (lambda: animation("WEBP"), "is animated"),
    "png-transparent": (lambda: encoded(one_transparent_pixel()), "has transparent pixels"),
    "webp-transparent": (
        lambda: encoded(one_transparent_pixel(), "WEBP", lossless=True),
        "has transparent pixels",
    ),
    "palette-transparent": (transparent_palette, "has transparent pixels"),
    "png-profile": (lambda: profile_of(2**20 + 1, "PNG"), "broken or cut short"),
    "jpeg-profile": (lambda: profile_of(2**20 + 1, "JPEG"), "its icc_profile has 1048577 bytes"),
    "webp-profile": (lambda: profile_of(2**20 + 1, "WEBP"), "its icc_profile has 1048577 bytes"),
    "png-text-bomb": (
        lambda: png(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**22)))),
        "broken or cut short",
    ),
    "png-exif": (lambda: encoded(picture(), exif=b"Exif\0\0" + bytes(2**17)), "its exif has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_plain_picture_is_refused_by_name(name: str) -> None:
    """The message says what is wrong, and the field where."""
    make, problem = REFUSED[name]

    with pytest.raises(InvalidRequestError, match=r"^params\.init_image\.data: ") as caught:
        decode_init_image(make(), MAX_PIXELS)

    assert caught.value.field == "params.init_image.data"
    assert problem in caught.value.problem


@pytest.mark.parametrize("name", [name for name in REFUSED if name.endswith("bomb")])
def test_a_decompression_bomb_takes_no_memory(name: str) -> None:
    """A few bytes must not make the server reserve gigabytes, nor run on Pillow's warning."""
    data = REFUSED[name][0]()
    tracemalloc.start()

    with pytest.raises(InvalidRequestError):
        decode_init_image(data, MAX_PIXELS)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return the file with some bytes changed, cut out, doubled, or its end lost."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(changed))
        match draw.randrange(5):
            case 0 | 1:
                changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 2:
                del changed[at : at + draw.randint(1, 8)]
            case 3:
                changed[at:at] = changed[at : at + draw.randint(1, 40)]
            case _:
                del changed[max(at, 16) :]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on odd chunks
def test_a_mutated_file_is_an_image_or_a_named_error(draws: random.Random) -> None:
    """No file, however broken, ends a request with anything but an answer."""
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": bytes(200)}
    seeds = [
        encoded(picture(), **options),
        encoded(picture("P"), transparency=3),
        encoded(picture(), "JPEG", **options),
        encoded(picture(), "JPEG", progressive=True),
        encoded(picture(), "WEBP", **options),
        encoded(picture("RGBA"), "WEBP", lossless=True),
        animation("PNG"),
        animation("WEBP"),
    ]

    num_read = sum(is_read(mutated(draws.choice(seeds), draws)) for _ in range(2000))

    assert 0 < num_read < 2000


def is_read(data: bytes) -> bool:
    """Return whether the file was read; any other error than ours fails the test."""
    try:
        image = decode_init_image(data, MAX_PIXELS)
    except InvalidRequestError:
        return False
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS
    return True


@pytest.fixture
def draws() -> random.Random:
    """Return draws that are the same in every run of a seed."""
    return random.Random(20)

"""From the bytes of an init image to its pixels, with everything refused that is not plainly one.

Pixel values are taken as sRGB, as the models were trained; a colour profile is not applied. The
orientation that a camera notes is honoured; a noted value that stands for none changes nothing.
"""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL.Image import Image, Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lokr_serve.errors import InvalidRequestError

FIELD = "params.init_image.data"
MAX_PROFILE_BYTES = 1024 * 1024  # real colour profiles have up to some 500 KiB
MAX_EXIF_BYTES = 64 * 1024  # what a JPEG has room for
# A JPEG's scans each pass over all of its pixels, and an empty one has ten bytes. Encoders write
# about ten.
MAX_JPEG_SCANS = 100
MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# What Pillow raises for files that are not what they say.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def decode_init_image(data: bytes, max_pixels: int) -> Image:
    """Return the image that an encoded file holds, upright, in mode RGB.

    Args:
        data: A PNG, JPEG or WebP file with one opaque image of 8 bits per channel.
        max_pixels: How many pixels it may have; compared before any is decoded.

    Raises:
        InvalidRequestError: The file is another kind of file, broken, too large, animated, partly
            transparent, or has CMYK or 16-bit channels.
    """
    opener = _opener(data)
    try:
        with opener(data, max_pixels) as image:
            _check_header(image, max_pixels)
            image.load()
            return _opaque(_upright(image))
    except InvalidRequestError:
        raise
    except _BROKEN as error:
        raise InvalidRequestError(FIELD, f"the file is broken or cut short: {error}") from error


def _opener(data: bytes) -> Callable[[bytes, int], ImageFile]:
    """Return what opens a file of this kind; Pillow's own choice would try more kinds."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _open_png
    if data.startswith(b"\xff\xd8\xff"):
        return _open_jpeg
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _open_webp
    problem = "is empty" if not data else "is not a PNG, JPEG or WebP file"
    raise InvalidRequestError(FIELD, f"{problem}; send the bytes of one of these")


def _open_png(data: bytes, max_pixels: int) -> ImageFile:
    if data[24:25] == b"\x10":  # the header's bit depth
        raise InvalidRequestError(FIELD, "has 16 bits per channel; send it with 8")
    return PngImageFile(BytesIO(data))


def _open_jpeg(data: bytes, max_pixels: int) -> ImageFile:
    num_scans = data.count(b"\xff\xda")
    if num_scans > MAX_JPEG_SCANS:
        raise InvalidRequestError(
            FIELD, f"has {num_scans} scans, more than {MAX_JPEG_SCANS}; save it as a baseline JPEG"
        )
    return JpegImageFile(BytesIO(data))


def _open_webp(data: bytes, max_pixels: int) -> ImageFile:
    """Open a WebP file; its decoder takes memory for all pixels when it is made, so look first."""
    _check_size(_webp_size(data), max_pixels)
    return WebPImageFile(BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of the canvas, which stands in the first chunk."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = data[24:27] + b"\0", data[27:30] + b"\0"
        return struct.unpack("<I", width)[0] + 1, struct.unpack("<I", height)[0] + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"a WebP file does not start with a chunk {kind!r}")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidRequestError(
            FIELD, f"has {width} x {height} pixels, more than {max_pixels} in all; shrink it"
        )


def _check_header(image: ImageFile, max_pixels: int) -> None:
    """Refuse, before its pixels are decoded, what is not one opaque 8-bit picture of our size."""
    _check_size(image.size, max_pixels)
    if isinstance(image, PngImageFile | WebPImageFile) and image.is_animated:
        raise InvalidRequestError(FIELD, "is animated; send one picture")
    if image.mode not in MODES:
        raise InvalidRequestError(FIELD, f"its pixels are {image.mode}; convert it to 8-bit RGB")
    if image.mode == "P" and image.palette is None:
        raise InvalidRequestError(FIELD, "has pixels of a palette and no palette; save it anew")
    limits = {"icc_profile": MAX_PROFILE_BYTES, "exif": MAX_EXIF_BYTES}
    for name, max_bytes in limits.items():
        num_bytes = len(image.info.get(name) or b"")
        if num_bytes > max_bytes:
            raise InvalidRequestError(
                FIELD,
                f"its {name} has {num_bytes} bytes, more than {max_bytes}; leave it out",
            )


def _upright(image: Image) -> Image:
    orientation = image.getexif().get(_ORIENTATION, 1)
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _opaque(image: Image) -> Image:
    """Return the image as RGB, without its metadata; alpha may be there if it hides nothing."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise InvalidRequestError(
                FIELD, "has transparent pixels; lay it over the background that you want"
            )
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb

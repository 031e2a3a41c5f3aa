"""Image files, good and hostile, for the tests of init images."""

import random
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image


def picture(mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Image.Image:
    """Return a picture that no flip or turn leaves as it is."""
    gradient = Image.linear_gradient("L").resize(size)
    red = gradient.point(lambda level: level // 2)
    across = gradient.transpose(Image.Transpose.ROTATE_90).resize(size)
    rgb = Image.merge("RGB", (red, across, gradient))
    return rgb if mode == "RGB" else rgb.convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Return the image as a file."""
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG, of RGB pixels if not told otherwise, with these chunks inside."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_x(width: int, height: int) -> bytes:
    """Return the header of an extended WebP file."""
    sizes = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return riff((b"VP8X", b"\0\0\0\0" + sizes), (b"VP8 ", b"\0" * 64))


def jpeg_of_size(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims a size."""
    data = encoded(picture(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def one_transparent_pixel() -> Image.Image:
    """Return a picture with a pixel that shows a little of what is behind it."""
    image = picture("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 254))
    return image


def transparent_palette() -> bytes:
    """Return a PNG with a transparent colour."""
    return encoded(picture("P"), transparency=0)


def animation(file_format: str) -> bytes:
    """Return a file with two frames."""
    frames = [picture(), picture().transpose(Image.Transpose.ROTATE_180)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


def profile_of(size: int, file_format: str) -> bytes:
    """Return a file with a colour profile of so many bytes."""
    return encoded(picture(), file_format, icc_profile=random.Random(0).randbytes(size))

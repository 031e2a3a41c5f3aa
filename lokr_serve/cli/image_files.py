"""The files that images are written to: named before they are made, and never half written."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lokr_core import LokrError
from lokr_serve.errors import SettingsError
from lokr_serve.types import GeneratedImage, ImageFormat, ImageOutput, ImagePreview

# The first suffix of a format is the one that it gets where no name is given.
_FORMATS = MappingProxyType(
    {
        ".png": ImageFormat.PNG,
        ".webp": ImageFormat.WEBP,
        ".jpg": ImageFormat.JPEG,
        ".jpeg": ImageFormat.JPEG,
        ".rgb": ImageFormat.RAW,
    }
)
DEFAULT_STEM = "image-{seed}"


def choose_format(wanted: ImageFormat | None, output: Path | None) -> ImageFormat:
    """Return the format of images: the one that is asked for, or that their name tells.

    Raises:
        SettingsError: The name tells none, or another one than is asked for.
    """
    told = None if output is None else _FORMATS.get(output.suffix.lower())
    if wanted is not None:
        if told not in (None, wanted):
            raise SettingsError(f"--output: {output} does not end like a file of {wanted.value}")
        return wanted
    if output is not None and told is None:
        raise SettingsError(f"--output: {output} tells no format; give --format")
    return told or ImageFormat.PNG


def choose_pattern(output: Path | None, image_format: ImageFormat) -> Path:
    """Return the name of images, with ``{index}`` and ``{seed}`` to be filled in.

    Raises:
        SettingsError: It is none.
    """
    if output is not None:
        if not output.name:
            raise SettingsError(f"--output: {output} names no file")
        return output
    suffix = next(suffix for suffix, known in _FORMATS.items() if known is image_format)
    return Path(DEFAULT_STEM + suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """Where the images of one request go, by index."""

    paths: tuple[Path, ...]
    may_overwrite: bool

    def require_free(self, output: ImageOutput) -> None:
        """Check, before anything is made, that every file can be written.

        Raises:
            SettingsError: Two images would share a file, a folder is not there or takes no files,
                or a file is there.
        """
        if len(set(self.paths)) < len(self.paths):
            raise SettingsError("--output: several images need {index} or {seed} in their name")
        paths = list(self.paths)
        if output.latents:
            paths += map(_latents_path, self.paths)
        if output.preview_interval:
            paths += map(_preview_path, self.paths)
        if len(set(paths)) < len(paths):
            raise SettingsError(f"--output: {self.paths[0]} is also what lies beside it; rename it")
        folder = self.paths[0].parent
        if not folder.is_dir():
            raise SettingsError(f"--output: {folder} is no folder")
        _require_writable(folder)
        for path in paths:
            self._require_free(path)

    def write_image(self, image: GeneratedImage) -> list[Path]:
        """Write an image and what comes with it; return the paths."""
        path = self.paths[image.index]
        self._write(path, image.data)
        if image.latents is None:
            return [path]
        self._write(_latents_path(path), image.latents)
        return [path, _latents_path(path)]

    def write_preview(self, preview: ImagePreview) -> Path:
        """Write a preview over the last one; return its path."""
        path = _preview_path(self.paths[preview.index])
        _replace(path, preview.data)
        return path

    def remove_previews(self) -> None:
        """Remove what :meth:`write_preview` has left, once there is nothing to wait for."""
        for path in self.paths:
            _preview_path(path).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        self._require_free(path)  # again: it may have come meanwhile
        _replace(path, data)

    def _require_free(self, path: Path) -> None:
        try:
            is_there, is_folder = path.exists(), path.is_dir()
        except OSError as error:  # such as a name that is too long
            raise SettingsError(f"--output: {path} cannot be written: {error}") from error
        if is_folder:
            raise SettingsError(f"--output: {path} is a folder")
        if is_there and not self.may_overwrite:
            raise SettingsError(f"--output: {path} exists; give --force to overwrite it")


def image_files(pattern: Path, seeds: Sequence[int], *, may_overwrite: bool) -> ImageFiles:
    """Return the files of images with these seeds.

    Args:
        pattern: Their name, in which ``{index}`` and ``{seed}`` are filled in.
        seeds: The seed of each image.
        may_overwrite: Whether files that are there may be replaced.
    """
    names = (
        pattern.name.replace("{index}", str(index)).replace("{seed}", str(seed))
        for index, seed in enumerate(seeds)
    )
    return ImageFiles(
        paths=tuple(pattern.with_name(name) for name in names), may_overwrite=may_overwrite
    )


def _latents_path(path: Path) -> Path:
    return _beside(path, ".safetensors")


def _preview_path(path: Path) -> Path:
    return _beside(path, ".preview.jpg")


def _beside(path: Path, suffix: str) -> Path:
    """Return the name of a file beside an image; only what tells a format is left out of it."""
    stem = path.stem if path.suffix.lower() in _FORMATS else path.name
    return path.with_name(stem + suffix)


def _require_writable(folder: Path) -> None:
    stage = _stage(folder)
    try:
        stage.touch(exist_ok=False)
        stage.unlink()
    except OSError as error:
        raise SettingsError(f"--output: {folder} takes no files: {error}") from error


def _stage(folder: Path) -> Path:
    """Return a name that no file has, short enough for every file system."""
    return folder / f".image-{secrets.token_hex(8)}"


def _replace(path: Path, data: bytes) -> None:
    """Write a file under another name first, so that none is ever seen half written."""
    stage = _stage(path.parent)
    try:
        stage.write_bytes(data)
        stage.replace(path)
    except OSError as error:
        raise LokrError(f"{path} cannot be written: {error}") from error
    finally:
        stage.unlink(missing_ok=True)

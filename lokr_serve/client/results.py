"""What the client library returns beside the values of ``lokr_serve.types``."""

from dataclasses import dataclass
from enum import Enum

from lokr_serve.types import (
    Chunk,
    Finished,
    GeneratedImage,
    ImageFinished,
    ImageStarted,
    Started,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The whole reply to one request; one chunk and one end for each sequence, by index."""

    started: Started
    chunks: tuple[Chunk, ...]
    finished: tuple[Finished, ...]

    @property
    def text(self) -> str:
        """The text of the first sequence."""
        return self.chunks[0].text


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImages:
    """The whole reply to one request for images; one image and one end for each, by index."""

    started: ImageStarted
    images: tuple[GeneratedImage, ...]
    finished: tuple[ImageFinished, ...]


class Health(Enum):
    """Whether a server, or one of its services, takes requests."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"

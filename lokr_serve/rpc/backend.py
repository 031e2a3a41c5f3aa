"""Backends: what calls are served from, by the kind of model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from lokr_serve.adapters import AdapterRegistry
from lokr_serve.text import PromptEncoder, TextEngine
from lokr_serve.types import EngineHealth
from lokr_serve.v1 import images_pb2, text_pb2

if TYPE_CHECKING:  # they import diffusers, which takes seconds that a server of text does without
    from lokr_serve.image.engine import ImageEngine
    from lokr_serve.image.pipelines import PipelineFactory


class Engine(Protocol):
    """What the server asks of an engine, whatever it makes."""

    def start(self) -> None:
        """Start the engine's thread."""

    async def begun(self) -> None:
        """Wait until the thread is at work; EngineStoppedError if it cannot be."""

    async def stop(self, timeout_seconds: float | None = None) -> None:
        """End the thread; EngineStoppedError if its step does not end in time."""

    def abandon(self) -> None:
        """End every request without waiting for the step that runs."""

    def health(self) -> EngineHealth:
        """Return whether the engine does its work."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextBackend:
    """A language model."""

    service: ClassVar[str] = text_pb2.DESCRIPTOR.services_by_name["TextService"].full_name
    product: ClassVar[str] = "text"

    registry: AdapterRegistry
    encoder: PromptEncoder
    engine: TextEngine


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageBackend:
    """A pipeline of diffusers."""

    service: ClassVar[str] = images_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
    product: ClassVar[str] = "images"

    registry: AdapterRegistry
    factory: "PipelineFactory"
    engine: "ImageEngine"


Backend = TextBackend | ImageBackend
ENGINE_SERVICES = frozenset((TextBackend.service, ImageBackend.service))

"""Exposition: what scrapers get, rendered seldom and quickly, as gateways scrape all the time."""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

# Between two renderings of one form. A scrape waits for the next one, with all who came since
# the last, so that what it tells is never older than the scrape.
INTERVAL_SECONDS = 0.05
MAX_START_LENGTH = 1000  # the gateways' series is longer, and another one at each change
MAX_LINES = 5_000  # whose start is remembered; labels come and go
MAX_FORMS = 8  # that are remembered beside the text: a scraper names its version as it likes
PLAIN_BELOW = 1e6  # from here on the text format wants an exponent

Render = Callable[[], bytes]


class Exposition:
    """Renders a registry for all who ask, on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._text = _Renderings(TextRenderer(registry).render)
        self._others: dict[str, _Renderings] = {}  # by their content type

    @property
    def num_forms(self) -> int:
        """Forms beside the text that are remembered."""
        return len(self._others)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the form that a scraper asks for."""
        encoder, content_type = choose_encoder(accept)
        if content_type == CONTENT_TYPE_PLAIN_0_0_4:
            return await self._text.next(), content_type
        if content_type not in self._others and len(self._others) >= MAX_FORMS:
            self._others.clear()
        renderings = self._others.setdefault(
            content_type, _Renderings(lambda: encoder(self._registry))
        )
        return await renderings.next(), content_type


class _Renderings:
    """Renders at most once in an interval, for all who wait."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._next: asyncio.Task[bytes] | None = None
        self._rendered_at = -INTERVAL_SECONDS

    async def next(self) -> bytes:
        """Return the next rendering."""
        if self._next is None:
            self._next = asyncio.create_task(self._wait_and_render())
        return await asyncio.shield(self._next)  # the others want it even if this one has gone

    async def _wait_and_render(self) -> bytes:
        await asyncio.sleep(self._rendered_at + INTERVAL_SECONDS - time.monotonic())
        self._next = None  # who comes from here on wants a later one
        self._rendered_at = time.monotonic()
        return self._render()


class TextRenderer:
    """Writes Prometheus's text format as its client library does, byte for byte, but faster.

    It remembers how each line starts, which is the same at every scrape, and most of the work.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._starts: dict[tuple[str, ...], str] = {}
        self._write_large = lru_cache(MAX_LINES)(floatToGoString)  # mostly times that stay

    def render(self) -> bytes:
        """Return the exposition."""
        if len(self._starts) > MAX_LINES:
            self._starts.clear()
        lines: list[str] = []
        for family in self._registry.collect():
            self._add(family, lines)
        return "".join(lines).encode()

    def _add(self, family: Metric, lines: list[str]) -> None:
        name, kind = _text_name(family)
        lines.append(_head(name, family.documentation, kind))
        created = f"{family.name}_created"
        lines += self._lines(sample for sample in family.samples if sample.name != created)
        ages = [sample for sample in family.samples if sample.name == created]
        if ages:
            lines.append(_head(created, family.documentation, "gauge"))
            lines += self._lines(ages)

    def _lines(self, samples: Iterable[Sample]) -> Iterable[str]:
        starts = self._starts
        for sample in samples:
            key = (sample.name, *sample.labels.values())
            start = starts.get(key)
            if start is None:
                start = _start(sample)
                if len(start) < MAX_START_LENGTH:
                    starts[key] = start
            value = sample.value
            is_plain = -PLAIN_BELOW < value < PLAIN_BELOW
            yield f"{start}{float(value) if is_plain else self._write_large(value)}\n"


def _text_name(family: Metric) -> tuple[str, str]:
    """Return a family's name and type as the text format has them."""
    match family.type:
        case "counter":
            return f"{family.name}_total", "counter"
        case "info":
            return f"{family.name}_info", "gauge"
        case kind:
            return family.name, kind


def _head(name: str, text: str, kind: str) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _start(sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}} " if labels else f"{sample.name} "


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

"""Report: what images of mixed batches differ by from those that were made alone."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lokr_serve.types import ImageRequest
from tests.oracle.images.adapters import AdapterFiles, write_adapters
from tests.oracle.images.reference import Reference
from tests.oracle.images.stage import Conditions, DtypeName, ImageStage, ServedImages
from tests.oracle.images.traffic import ImageTraffic
from tests.oracle.images.trained import ImageFamily

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
TOLERANCES: dict[DtypeName, float] = {"float32": 1e-4, "float64": 1e-10}  # of the change
MIN_CHANGE = 0.02  # of the latents, so that a wrong scale is loud


@dataclass(slots=True, kw_only=True)
class ImageVerdict:
    """What was compared, and what differed."""

    num_images: int = 0
    max_error: float = 0.0  # of the change of the latents; of a base image, of the latents
    max_error_by_kind: dict[str, float] = field(default_factory=dict)
    min_change: float = float("inf")  # of the latents
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """Images of one family, compared with the peers'."""

    family: str
    forms: dict[str, int]
    conditions: Conditions
    verdict: ImageVerdict

    @property
    def has_passed(self) -> bool:
        """Whether nothing differed and no step failed."""
        return not self.verdict.differences and not self.conditions.failed_steps


class ImageJudge:
    """Compares served images with those of the stock pipeline, made alone.

    Args:
        files: The adapters, and what their trainers make of the base.
        dtype: Of the pipelines.
        rows: Digests of the latents that the server's denoiser was given, row by row.
    """

    def __init__(self, files: AdapterFiles, dtype: DtypeName, rows: Counter[str]) -> None:
        self._reference = Reference(files.family, DTYPES[dtype], files.changes)
        self._tolerance = TOLERANCES[dtype]
        self._rows = rows
        self.verdict = ImageVerdict()

    def compare(self, served: ServedImages) -> None:
        """Compare the images of one request."""
        request = served.planned.request
        where = f"request {served.planned.number} ({served.planned.form}, {served.apply.value})"
        for index, latents in enumerate(served.latents):
            alone = self._reference.make(request, index)
            if not alone.first_rows <= self._rows.keys():
                self._differs(f"{where}, image {index}: starts from other noise")
            self._compare(f"{where}, image {index}", request, latents, alone.latents, index)

    def _compare(
        self, where: str, request: ImageRequest, found: Tensor, wanted: Tensor, index: int
    ) -> None:
        verdict = self.verdict
        verdict.num_images += 1
        size = wanted.norm().item()
        if request.adapters:
            base = self._reference.make(without_adapters(request), index).latents
            size = (wanted - base).norm().item()
            change = size / base.norm().item()
            verdict.min_change = min(verdict.min_change, change)
            if change < MIN_CHANGE:
                self._differs(f"{where}: changes by {change:.1e} alone, which shows nothing")
        same_shape = found.shape == wanted.shape and found.dtype == wanted.dtype
        error = (found - wanted).norm().item() / size if same_shape else float("inf")
        verdict.max_error = max(verdict.max_error, error)
        for kind in [part.adapter_id for part in request.adapters] or ["base"]:
            errors = verdict.max_error_by_kind
            errors[kind] = max(errors.get(kind, 0.0), error)
        if not error <= self._tolerance:
            ids = [part.adapter_id for part in request.adapters]
            self._differs(f"{where}: {ids}, {request.params.scheduler}: off by {error:.1e}")

    def _differs(self, what: str) -> None:
        self.verdict.differences.append(what)


def without_adapters(request: ImageRequest) -> ImageRequest:
    """Return a request for the same images of the base."""
    return ImageRequest(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        params=request.params,
        output=request.output,
    )


async def serve(
    files: AdapterFiles, folder: Path, dtype: DtypeName, *, numbers: range, seed: int
) -> tuple[list[ServedImages], ImageStage]:
    """Serve random requests together."""
    requests = ImageTraffic(files.family, files.changes, seed).requests(numbers)
    async with ImageStage(files, folder, dtype).running() as stage:
        await stage.load_all()
        return await stage.serve(requests), stage


def judge(
    files: AdapterFiles, dtype: DtypeName, served: Sequence[ServedImages], rows: Counter[str]
) -> ImageVerdict:
    """Return the verdict on served images."""
    judge = ImageJudge(files, dtype, rows)
    for images in served:
        judge.compare(images)
    return judge.verdict


def report_images(
    family: ImageFamily,
    kinds: Sequence[str],
    dtype: DtypeName,
    *,
    numbers: range,
    seed: int,
) -> ImageReport:
    """Serve random requests of some numbers to one family's pipeline, and compare their images."""
    with TemporaryDirectory() as folder:
        files = write_adapters(family, Path(folder, "adapters"), kinds, seed)
        served, stage = asyncio.run(
            serve(files, Path(folder, "model"), dtype, numbers=numbers, seed=seed)
        )
        return ImageReport(
            family=family.name,
            forms=dict(Counter(images.planned.form for images in served)),
            conditions=stage.conditions(),
            verdict=judge(files, dtype, served, stage.rows),
        )

"""``lokr-serve inspect``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

import lokr_core
from lokr_serve.cli.command import Dtype, DtypeFlag, JsonFlag
from lokr_serve.cli.output import print_json, progress
from lokr_serve.cli.weights import Weighted, parse_weighted

if TYPE_CHECKING:
    from lokr_core import Adapted
    from lokr_core.formats.inspect import Inspection
    from lokr_serve.cli.inspect_mix import MixReport


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what adapter files hold and, with a model, what they change and what a mix costs.

    Everything that is wrong is listed, and the exit code is then 1. Of several paths, or of one
    with a weight, the rounding loss of merging their mix is told as well, which takes the base's
    weights.
    """

    paths: Annotated[
        list[str], Argument(metavar="PATH[*WEIGHT]...", help="Files or folders of adapters.")
    ]
    model: Annotated[
        Path | None, Option(metavar="DIR", help="A model folder, or one of a pipeline.")
    ] = None
    dtype: DtypeFlag = Dtype.AUTO
    as_json: JsonFlag = False

    def run(self) -> None:
        """Read the files and print what was found."""
        from lokr_core.formats.inspect import inspect_adapter  # with torch: slow to import
        from lokr_serve.cli.inspect_page import print_page

        weighted = [parse_weighted(path) for path in self.paths]
        adapted = self._read_modules()
        spec = None if adapted is None else adapted.spec
        found = [inspect_adapter(Path(item.name), spec) for item in weighted]
        mix = None if adapted is None else self._mix(weighted, found, adapted)
        reports = [inspection.report for inspection in found]
        is_served = all(report.is_served for report in reports)
        is_served &= mix is None or mix.problem is None
        if self.as_json:
            adapters, mix_facts = [asdict(report) for report in reports], mix and asdict(mix)
            print_json({"is_served": is_served, "adapters": adapters, "mix": mix_facts})
        else:
            print_page(reports, mix)
        if not is_served:
            raise typer.Exit(1)

    def _read_modules(self) -> "Adapted | None":
        if self.model is None:
            return None
        from lokr_serve.cli.inspect_base import read_modules  # with transformers: slow to import

        with progress(f"reading {self.model}"):
            return lokr_core.attach(read_modules(self.model, self.dtype))

    def _mix(
        self, weighted: Sequence[Weighted], found: "Sequence[Inspection]", adapted: "Adapted"
    ) -> "MixReport | None":
        """Return what the mix costs, if all of its adapters would be served."""
        from lokr_serve.cli.inspect_mix import report_mix, rounding_loss

        adapters = [inspection.adapter for inspection in found if inspection.adapter is not None]
        if len(adapters) < len(found):
            return None
        mix = report_mix(weighted, adapters, adapted)
        is_mix = len(self.paths) > 1 or "*" in self.paths[0]
        if mix.problem is not None or not is_mix or self.model is None:
            return mix
        from lokr_serve.cli.inspect_base import load_weights  # with transformers: slow to import

        with progress(f"loading {self.model}"):
            base = lokr_core.attach(load_weights(self.model, self.dtype))
            return replace(mix, rounding_loss=rounding_loss(weighted, base))

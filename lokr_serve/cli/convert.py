"""``lokr-serve convert``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

import lokr_core
from lokr_core.formats.layouts import Layout
from lokr_serve.cli.command import Dtype, DtypeFlag, JsonFlag
from lokr_serve.cli.output import print_facts, print_json, progress

if TYPE_CHECKING:
    from lokr_core.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write an adapter in another layout; refused where that would not be the very same adapter.

    What is written is read back and compared before it gets its name.
    """

    source: Annotated[Path, Argument(metavar="PATH", help="The adapter's file or folder.")]
    out: Annotated[
        Path, Argument(metavar="OUT", help="A new safetensors file, or a new folder for peft.")
    ]
    to: Annotated[Layout, Option(help="The layout to write.")] = Layout.CANONICAL
    model: Annotated[
        Path | None,
        Option(metavar="DIR", help="The base; needed unless modules are named by their paths."),
    ] = None
    dtype: DtypeFlag = Dtype.AUTO
    scale_override: Annotated[float | None, Option(help="In place of the file's scale.")] = None
    alpha: Annotated[float | None, Option(help="In place of the file's alpha.")] = None
    rank: Annotated[int | None, Option(help="In place of the file's rank.")] = None
    as_json: JsonFlag = False

    def run(self) -> None:
        """Convert it and print what was written."""
        from lokr_core.formats.convert import convert  # with torch: slow to import

        with progress(f"converting {self.source}"):
            done = convert(
                self.source, self.out, self.to, spec=self._spec(), options=self._options()
            )
        if self.as_json:
            print_json(asdict(done))
        else:
            print_facts(asdict(done))

    def _options(self) -> "lokr_core.ReadOptions":
        overrides = lokr_core.ScaleOverrides(
            scale=self.scale_override, alpha=self.alpha, rank=self.rank
        )
        return lokr_core.ReadOptions(overrides=overrides)

    def _spec(self) -> "ModelSpec | None":
        if self.model is None:
            return None
        from lokr_serve.cli.inspect_base import read_modules  # with transformers: slow to import

        return lokr_core.attach(read_modules(self.model, self.dtype)).spec

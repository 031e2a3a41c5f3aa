"""``lokr-serve inspect``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import lokr_core
from lokr_core import Adapted, Adapter, AdapterMix
from lokr_core.formats.file import parse_file
from lokr_core.formats.names import is_peft_style
from lokr_core.formats.source import open_source
from lokr_serve.cli.command import JsonFlag
from lokr_serve.cli.output import print_facts, print_json
from lokr_serve.cli.weights import Weighted, parse_weighted
from lokr_serve.config import ModelSettings

Facts = Mapping[str, object]

# What a key holds that belongs to an algorithm.
_SIGNS = (
    ("lokr", "lokr_"),
    ("loha", "hada_"),
    ("lora", "lora_"),
    ("dora", "dora_scale"),
    ("dora", "magnitude_vector"),
)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what adapter files hold and, with a model, what they change and what their mix costs."""

    paths: Annotated[
        list[str], Argument(metavar="PATH[*WEIGHT]...", help="Files or folders of adapters.")
    ]
    model: Annotated[Path | None, Option(metavar="DIR", help="Folder of the base model.")] = None
    as_json: JsonFlag = False

    def run(self) -> None:
        """Read the files and print what was found."""
        weighted = [parse_weighted(path) for path in self.paths]
        if self.model is None:
            report: dict[str, object] = {"adapters": [_file_facts(item.name) for item in weighted]}
        else:
            report = _report(weighted, _attached(self.model))
        if self.as_json:
            print_json(report)
        else:
            _print(report)


def _file_facts(path: str) -> Facts:
    """Return what a file says of itself, without a base model to hold it against."""
    source = open_source(Path(path))
    content = parse_file(source.file)
    tensors = content.tensors
    is_peft = source.config is not None or is_peft_style(tensors)
    algorithms = {name for name, sign in _SIGNS for key in tensors if sign in key}
    return {
        "path": str(source.file.path),
        "format": "peft" if is_peft else "lycoris",
        "algorithms": sorted(algorithms),
        "num_tensors": len(tensors),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "num_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "dtypes": dict(Counter(str(tensor.dtype) for tensor in tensors.values())),
        "digest": source.file.digest(),
        "metadata": dict(content.metadata),
    }


def _attached(model: Path) -> Adapted:
    from lokr_serve.text.load import load_model  # with transformers: slow to import

    return lokr_core.attach(load_model(ModelSettings(path=model, device="cpu")))


def _report(weighted: Sequence[Weighted], adapted: Adapted) -> dict[str, object]:
    """Return what the adapters are on this model, and what their mix costs."""
    adapters = [lokr_core.read_adapter(item.name, adapted.spec) for item in weighted]
    for adapter in adapters:
        adapted.add(adapter)
    weights = {adapter.ref: item.weight for adapter, item in zip(adapters, weighted, strict=True)}
    return {
        "adapters": [_adapter_facts(adapter) for adapter in adapters],
        "mix": _mix_facts(AdapterMix.of(weights, max_parts=len(weights)), adapted),
    }


def _adapter_facts(adapter: Adapter) -> Facts:
    return {
        "adapter_id": adapter.ref.adapter_id,
        "version": adapter.ref.version,
        "num_modules": len(adapter.layout.modules),
        "num_bytes": adapter.num_bytes,
        **asdict(adapter.info),
    }


def _mix_facts(mix: AdapterMix, adapted: Adapted) -> Facts:
    cost = adapted.cost(mix)
    return {
        "name": mix.name,
        **asdict(cost),
        "unmerged_share": cost.unmerged_macs / cost.base_macs,
        "rounding_loss": adapted.merge(mix).rounding_loss,
    }


def _print(report: Mapping[str, object]) -> None:
    adapters, mix = report["adapters"], report.get("mix")
    assert isinstance(adapters, list)
    for facts in adapters:
        print_facts(facts)
        typer.echo()
    if isinstance(mix, dict):
        print_facts(mix)

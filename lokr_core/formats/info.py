"""What is told of an adapter beside its numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence

from lokr_core.adapter import AdapterInfo, ScaleSource
from lokr_core.formats.keys import Binding
from lokr_core.formats.modules import ModuleReader, ReadModule


def describe(
    reader: ModuleReader, modules: Sequence[ReadModule], binding: Binding, digest: str
) -> AdapterInfo:
    """Return what is known of an adapter that was read, warnings included."""
    algorithms = {module.form.algorithm for module in modules}
    if any(module.weights.gain is not None for module in modules):
        algorithms.add("dora")
    scales = Counter(module.scale.source for module in modules)
    return AdapterInfo(
        format="peft" if reader.is_peft else "lycoris",
        algorithms=tuple(sorted(algorithms)),
        digest=digest,
        num_parameters=sum(
            entry.value.numel()
            for module in modules
            for leaf, entry in module.tensors.by_leaf.items()
            if leaf != "alpha"
        ),
        scales=tuple(ScaleSource(source=s, num_modules=n) for s, n in sorted(scales.items())),
        warnings=tuple(_warnings(reader, modules, binding)),
    )


def _warnings(
    reader: ModuleReader, modules: Sequence[ReadModule], binding: Binding
) -> Iterator[str]:
    if binding.unmatched:
        keys = ", ".join(repr(key) for key in binding.unmatched)
        yield f"{len(binding.unmatched)} tensors match no module and were left out: {keys}"
    cautions = Counter(module.scale.caution for module in modules if module.scale.caution)
    for caution, num_modules in cautions.items():
        yield f"{num_modules} modules {caution}"
    if reader.config is not None:
        yield from reader.config.warnings([module.tensors.spec.path for module in modules])

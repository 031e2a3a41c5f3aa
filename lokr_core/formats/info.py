"""What is told of an adapter beside its numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lokr_core.adapter import AdapterInfo, ScaleSource
from lokr_core.errors import listed
from lokr_core.formats.binding import Binding
from lokr_core.formats.modules import ModuleReader, ReadModule
from lokr_core.formats.peft import PeftConfig
from lokr_core.formats.tensors import trained_path
from lokr_core.spec import ModelSpec
from lokr_core.weights import ModuleWeights, Replacement

NO_PARAMETERS = frozenset({"alpha", "scale", "bias_indices", "bias_size"})  # leaves not trained


def describe(
    reader: ModuleReader,
    modules: Sequence[ReadModule],
    weights: Mapping[str, ModuleWeights],
    binding: Binding,
    digest: str,
) -> AdapterInfo:
    """Return what is known of an adapter that was read, warnings included.

    Args:
        reader: What its modules have in common.
        modules: The modules of the file as they were read.
        weights: What they do to the modules of the base, by path.
        binding: Where the file's tensors belong.
        digest: Of the tensor file.
    """
    scales = Counter(module.scale.source for module in modules if module.scale is not None)
    return AdapterInfo(
        format="peft" if reader.is_peft else "lycoris",
        algorithms=tuple(sorted({name for module in modules for name in module.algorithms})),
        digest=digest,
        num_parameters=sum(
            entry.value.numel()
            for module in modules
            for leaf, entry in module.module.by_leaf.items()
            if leaf not in NO_PARAMETERS
        ),
        scales=tuple(ScaleSource(source=s, num_modules=n) for s, n in sorted(scales.items())),
        warnings=(
            *_unmatched(binding),
            *_notes(reader, modules),
            *_resized(reader.spec, weights),
        ),
    )


def _unmatched(binding: Binding) -> Iterator[str]:
    if binding.unmatched:
        keys = listed(binding.unmatched)  # a few: each reply about the adapter has the warnings
        yield f"{len(binding.unmatched)} tensors match no module and were left out: {keys}"


def _notes(reader: ModuleReader, modules: Sequence[ReadModule]) -> Iterator[str]:
    notes = Counter(note for module in modules for note in module.notes)
    for note, num_modules in notes.items():
        yield f"{num_modules} modules {note}"
    by_config: dict[int, tuple[PeftConfig, list[ReadModule]]] = {}
    for module in modules:
        config = reader.config_of(module.module)
        if config is not None:
            by_config.setdefault(id(config), (config, []))[1].append(module)
    for config, members in by_config.values():
        held = [config.path_of(trained_path(module.module)) for module in members]
        adapted = [path for path, m in zip(held, members, strict=True) if m.form is not None]
        yield from config.warnings(adapted, held)


def _resized(spec: ModelSpec, weights: Mapping[str, ModuleWeights]) -> Iterator[str]:
    """Yield the parameters that are replaced by some of another size."""
    for path, module in weights.items():
        size = spec.modules[path].out_features
        replaced = module.replacement or Replacement()
        for name, tensor in (("weight", replaced.weight), ("bias", replaced.bias)):
            if tensor is not None and len(tensor) != size:
                yield (
                    f"{path}.{name} of {size} outputs is replaced by one of {len(tensor)}; there "
                    "is no difference of the two, so that delta_weights leaves it out"
                )

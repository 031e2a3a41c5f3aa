"""Vocabulary: every known name of the modules of one component, and the place each stands for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lokr_core.formats.maps import MAPS, NameMap, NamePair, Row, Shares, unet_map
from lokr_core.formats.places import Place, cut, joined, size, swapped, whole
from lokr_core.spec import ModuleSpec

Names = dict[str, set[Place]]  # more than one place: the name may mean any of them

# diffusers can fuse these; it keeps the split modules as well, and no longer calls them.
_FUSED_PROJECTIONS = (
    Row(original="{rest}.to_qkv", diffusers=("{rest}.to_q", "{rest}.to_k", "{rest}.to_v")),
    Row(original="{rest}.to_kv", diffusers=("{rest}.to_k", "{rest}.to_v")),
    Row(
        original="{rest}.to_added_qkv",
        diffusers=("{rest}.add_q_proj", "{rest}.add_k_proj", "{rest}.add_v_proj"),
    ),
)
# Where the LoRA layers of diffusers lay before it had PEFT.
_PROCESSORS = (
    *(
        Row(original=f"{{rest}}.processor.to_{name}_lora", diffusers=(f"{{rest}}.to_{name}",))
        for name in ("q", "k", "v")
    ),
    Row(original="{rest}.processor.to_out_lora", diffusers=("{rest}.to_out.0",)),
)
_PLACEHOLDERS = {"n": r"(?P<n>\d+)", "rest": r"(?P<rest>.+)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The names of one component, with dots and with underscores."""

    dotted: Mapping[str, set[Place]]
    flat: Mapping[str, set[Place]]

    @classmethod
    def of(cls, modules: Mapping[str, ModuleSpec]) -> "Vocabulary":
        """Return the names of modules, which are given by their path within the component."""
        own = {name: whole(spec.path, spec.out_features) for name, spec in modules.items()}
        own |= {
            name: place
            for row in _FUSED_PROJECTIONS
            for name, place in _parts_of_fused(row, own, modules)
        }
        dotted: Names = {name: {place} for name, place in own.items()}
        for name, place in _aliases(own, modules):
            dotted.setdefault(name, set()).add(place)
        _add_renamed(dotted)
        flat: Names = {}
        for name, places in dotted.items():
            flat.setdefault(name.replace(".", "_"), set()).update(places)
        return cls(dotted=dotted, flat=flat)


def _aliases(
    own: Mapping[str, Place], modules: Mapping[str, ModuleSpec]
) -> Iterator[tuple[str, Place]]:
    """Yield the names that modules have in other code, and the places that they stand for."""
    for row in (*_FUSED_PROJECTIONS, *_PROCESSORS):
        names = _original_names(row, own)
        yield from ((name, place) for name, place in names if name not in own)
    unet = unet_map(own)
    for name_map in (*MAPS, *([] if unet is None else [unet])):
        yield from _mapped(name_map, own, modules)


def _mapped(
    name_map: NameMap, own: Mapping[str, Place], modules: Mapping[str, ModuleSpec]
) -> Iterator[tuple[str, Place]]:
    if all(mark in own for mark in name_map.diffusers_marks):
        for row in name_map.rows:
            yield from _original_names(row, own)
    if all(mark in own for mark in name_map.original_marks):
        for row in name_map.rows:
            yield from _diffusers_names(row, own, modules)


def _original_names(row: Row, own: Mapping[str, Place]) -> Iterator[tuple[str, Place]]:
    """Yield the original names of a row on a base with the names of diffusers."""
    for values in _matches(row.diffusers[0], own):
        parts = [own.get(part.format(**values)) for part in row.diffusers]
        places = [part for part in parts if part is not None]
        if len(places) == len(parts) and _holds(row, own, values):
            place = joined(places)
            yield row.original.format(**values), swapped(place) if row.is_swapped else place


def _diffusers_names(
    row: Row, own: Mapping[str, Place], modules: Mapping[str, ModuleSpec]
) -> Iterator[tuple[str, Place]]:
    """Yield the diffusers names of a row on a base with the original names."""
    for values in _matches(row.original, own):
        place = own[row.original.format(**values)]
        if not _holds(row, own, values):
            continue
        if row.is_swapped:
            place = swapped(place)
        yield from _shared_out(row, values, place, _sizes(row, values, modules))


def _parts_of_fused(
    row: Row, own: Mapping[str, Place], modules: Mapping[str, ModuleSpec]
) -> Iterator[tuple[str, Place]]:
    """Yield the split projections of a base that has them fused.

    One that has some of them, or all in other sizes, has modules of its own under these names.
    """
    for values in _matches(row.original, own):
        place = own[row.original.format(**values)]
        parts = [part.format(**values) for part in row.diffusers]
        split = [size(own[part]) for part in parts if part in own]
        if not split:
            yield from _shared_out(row, values, place, _sizes(row, values, modules))
        elif len(split) == len(parts) and sum(split) == size(place):
            yield from _shared_out(row, values, place, split)


def _shared_out(
    row: Row, values: Mapping[str, str], place: Place, sizes: Sequence[int]
) -> Iterator[tuple[str, Place]]:
    """Yield the parts of a row and the pieces of a place that they stand for, if all have some."""
    if min(sizes) < 1:
        return
    for part, piece in zip(row.diffusers, cut(place, sizes), strict=True):
        yield part.format(**values), piece


def _matches(template: str, own: Mapping[str, Place]) -> Iterator[dict[str, str]]:
    """Yield the values with which a template is one of the component's own names."""
    if "{" not in template:
        if template in own:
            yield {}
        return
    pieces = re.split(r"\{(\w+)\}", template)  # text and placeholder take turns
    pattern = re.compile(
        "".join(
            _PLACEHOLDERS[piece] if index % 2 else re.escape(piece)
            for index, piece in enumerate(pieces)
        )
    )
    for name in own:
        if match := pattern.fullmatch(name):
            yield match.groupdict()


def _holds(row: Row, own: Mapping[str, Place], values: Mapping[str, str]) -> bool:
    def has(pair: NamePair) -> bool:
        return any(name.format(**values) in own for name in (pair.original, pair.diffusers))

    return (row.when is None or has(row.when)) and (row.unless is None or not has(row.unless))


def _sizes(row: Row, values: Mapping[str, str], modules: Mapping[str, ModuleSpec]) -> Sequence[int]:
    """Return how the outputs of a fused module are shared out."""
    fused = modules[row.original.format(**values)]
    outputs, count = fused.out_features, len(row.diffusers)
    share = fused.in_features if row.shares is Shares.SQUARE else outputs // count
    return [*[share] * (count - 1), outputs - share * (count - 1)]


def _add_renamed(dotted: Names) -> None:
    """Add what ai-toolkit makes of names: it renames the component wherever its name occurs."""
    for name, places in list(dotted.items()):
        renamed = name.replace("transformer.", "diffusion_model.")
        if renamed != name:
            dotted.setdefault(renamed, set()).update(places)

"""Binding: for each module of a file its tensors, and where in the base model they belong."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from lokr_core.errors import AdapterTensorError, UnsupportedModuleError
from lokr_core.formats.leaves import split_key, unserved_algorithm
from lokr_core.formats.names import ModuleNames
from lokr_core.formats.places import Place, overlap
from lokr_core.spec import ModelSpec, ModuleSpec
from lokr_core.weights import Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor with the key that it has in the file."""

    key: str
    value: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """Outputs of a base module that outputs of a file's module belong to.

    The file's outputs ``rows`` go to the base module's outputs from ``at``; both are None where
    the two modules are one, and of one shape.
    """

    spec: ModuleSpec
    rows: Rows | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileModule:
    """One module of a file; its targets share out its outputs, from the first to the last."""

    name: str
    by_leaf: Mapping[str, NamedTensor]  # such as lokr_w1; see KeyParts for all leaves
    targets: tuple[Target, ...]

    @property
    def out_features(self) -> int:
        """The outputs that its delta must have to fit the targets."""
        last = self.targets[-1]
        return last.spec.out_features if last.rows is None else last.rows.stop

    @property
    def is_whole(self) -> bool:
        """Whether it is one module of the base, and all of it."""
        return self.targets[0].rows is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binding:
    """The modules of a file in its own order, and what belongs to none that can be changed."""

    modules: tuple[FileModule, ...]
    unmatched: tuple[str, ...]
    refused: tuple[UnsupportedModuleError, ...] = ()  # for modules of the base that are of no kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """The tensors that were found for one place so far."""

    name: str
    by_leaf: dict[str, NamedTensor]

    def add(self, leaf: str, tensor: NamedTensor) -> None:
        """Add a tensor that no other may be the same part as."""
        other = self.by_leaf.setdefault(leaf, tensor)
        if other is not tensor:
            raise AdapterTensorError(tensor.key, f"gives the same factor as {other.key!r}")

    def at(self, place: Place, spec: ModelSpec) -> FileModule:
        """Return the module, now that all its tensors are known."""
        targets = tuple(_targets(place, spec))
        return FileModule(name=self.name, by_leaf=self.by_leaf, targets=targets)


def bind(tensors: Mapping[str, Tensor], names: ModuleNames) -> Binding:
    """Find where each tensor of a file belongs.

    Args:
        tensors: The tensors of a file, by key.
        names: The names of the base's modules; made once for a base, as it takes a while.

    Raises:
        AdapterTensorError: A tensor is of an algorithm that is not served, its name may mean more
            than one module, or it changes what another tensor changes.
    """
    places: dict[str, Place | None] = {}
    found: dict[Place, _Found] = {}
    unmatched = []
    refused: dict[str, UnsupportedModuleError] = {}
    for key, value in tensors.items():
        parts = split_key(key)
        if parts is not None and parts.module not in places:
            places[parts.module] = _place(key, parts.module, names)
        place = None if parts is None else places[parts.module]
        if parts is None or place is None:
            _refuse_unserved(key)
            error = None if parts is None else names.refusal(parts.module)
            if error is None:
                unmatched.append(key)
            else:
                refused.setdefault(error.module, error)
            continue
        module = found.setdefault(place, _Found(name=parts.module, by_leaf={}))
        module.add(parts.leaf, NamedTensor(key=key, value=value))
    _check_apart(found)
    modules = (module.at(place, names.spec) for place, module in found.items())
    return Binding(
        modules=tuple(modules), unmatched=tuple(unmatched), refused=tuple(refused.values())
    )


def _place(key: str, name: str, names: ModuleNames) -> Place | None:
    places = names.find(name)
    if len(places) > 1:
        meanings = sorted({", ".join(span.path for span in place) for place in places})
        raise AdapterTensorError(key, f"may mean any of the modules {' or '.join(meanings)}")
    return next(iter(places), None)


def _refuse_unserved(key: str) -> None:
    algorithm = unserved_algorithm(key)
    if algorithm is not None:
        raise AdapterTensorError(key, f"belongs to {algorithm}; that is not served")


def _check_apart(found: Mapping[Place, _Found]) -> None:
    """Check that no two modules of the file change the same outputs of the base."""
    shared: dict[str, list[Place]] = {}
    for place in found:
        for changed in {span.path for span in place}:
            shared.setdefault(changed, []).append(place)
    for places in shared.values():
        for one, other in combinations(places, 2):
            path = overlap(one, other)
            if path is not None:
                first, second = (next(iter(found[p].by_leaf.values())).key for p in (one, other))
                raise AdapterTensorError(second, f"changes module {path!r} as {first!r} does")


def _targets(place: Place, spec: ModelSpec) -> Iterator[Target]:
    start = 0
    for span in place:
        module = spec.modules[span.path]
        if len(place) == 1 and len(span) == module.out_features:
            yield Target(spec=module)
        else:
            yield Target(spec=module, rows=Rows(start=start, stop=start + len(span)), at=span.start)
        start += len(span)

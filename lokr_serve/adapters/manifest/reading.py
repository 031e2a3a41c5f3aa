"""Manifest: the adapters that a replica must hold, as a YAML file declares them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lokr_core import ADAPTER_ID_RULE, is_adapter_id
from lokr_serve.adapters.manifest.strict_yaml import load_yaml
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.errors import ManifestError
from lokr_serve.problems import Place, dotted, problems_of
from lokr_serve.types import AdapterOverrides, sha256_digest

MAX_BYTES = 1024 * 1024  # what a ConfigMap may hold
MAX_PROBLEMS = 10  # that one error names
MAX_SHOWN = 140  # characters of a value that is at fault

_WORDS = MappingProxyType(
    {
        "missing": "is required",
        "extra_forbidden": "is no key of a manifest",
        "model_type": "must be a mapping with the keys id and source",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredAdapter:
    """One adapter that a manifest declares."""

    request: LoadRequest
    pinned: bool = False
    ttl_seconds: float = 0.0  # 0 never expires
    aliases: tuple[str, ...] = ()

    @property
    def adapter_id(self) -> str:
        """The id that it is declared under."""
        return self.request.adapter_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The declared adapters; no id and no alias is given twice, nor one as the other."""

    adapters: Mapping[str, DeclaredAdapter]  # by id, in the order of the file
    aliases: Mapping[str, str]  # the id of each


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: It is no YAML, or declares what cannot be right; each entry at fault is
            named by its index and its id.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"the manifest has {len(data)} bytes, more than {MAX_BYTES}")
    tree = load_yaml(data)
    if not isinstance(tree, dict):
        raise ManifestError("the manifest must be a mapping with the key adapters")
    try:
        entries = _File.model_validate(tree).adapters
    except ValidationError as error:
        problems = problems_of(error, _WORDS, lambda place: _name(place, tree))
        raise ManifestError(_join(problems)) from error
    if problems := list(_clashes(entries)):
        raise ManifestError(_join(problems))
    declared = {entry.id: entry.declared() for entry in entries}
    aliases = {alias: entry.id for entry in entries for alias in entry.aliases}
    return Manifest(adapters=MappingProxyType(declared), aliases=MappingProxyType(aliases))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"must be text, not {_show(value)}; put it in quotes")


def _adapter_id(text: str) -> str:
    if not is_adapter_id(text):
        raise ValueError(f"{_show(text)} is no adapter id: {ADAPTER_ID_RULE}")
    return text


def _digest(text: str) -> str:
    if (digest := sha256_digest(text)) is None:
        raise ValueError("must be a SHA-256 of 64 hex digits")
    return digest


_Text = Annotated[str, BeforeValidator(_text)]
_AdapterId = Annotated[_Text, AfterValidator(_adapter_id)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Entry(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: _AdapterId
    source: Annotated[str, Field(min_length=1), BeforeValidator(_text)]
    digest: Annotated[_Text, AfterValidator(_digest)] | None = None
    pinned: bool = False
    ttl_seconds: Annotated[_Finite, Field(ge=0)] = 0.0
    aliases: list[_AdapterId] = []
    partial: bool = False
    scale_override: _Finite | None = None
    alpha: _Finite | None = None
    rank: Annotated[int, Field(ge=1, lt=2**32)] | None = None

    def declared(self) -> DeclaredAdapter:
        """Return what it declares."""
        overrides = AdapterOverrides(
            partial=self.partial,
            scale_override=self.scale_override,
            alpha=self.alpha,
            rank=self.rank,
        )
        return DeclaredAdapter(
            request=LoadRequest(
                adapter_id=self.id, source=self.source, overrides=overrides, digest=self.digest
            ),
            pinned=self.pinned,
            ttl_seconds=self.ttl_seconds,
            aliases=tuple(self.aliases),
        )


class _File(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    adapters: list[_Entry]


def _clashes(entries: Sequence[_Entry]) -> Iterator[str]:
    """Say which names are given twice."""
    ids: dict[str, int] = {}
    for index, entry in enumerate(entries):
        if (first := ids.setdefault(entry.id, index)) != index:
            yield f"{_place(index, entry.id)}: adapters[{first}] has this id, too"
    aliases: dict[str, int] = {}
    for index, entry in enumerate(entries):
        for alias in entry.aliases:
            place = f"{_place(index, entry.id)}.aliases"
            if alias in ids:
                yield f"{place}: {alias!r} is the id of adapters[{ids[alias]}]"
            elif alias in aliases:
                yield f"{place}: {alias!r} is an alias of adapters[{aliases[alias]}] already"
            aliases.setdefault(alias, index)


def _name(place: Place, tree: dict[object, object]) -> str:
    """Name what a place is in, by its id where it has one."""
    match place:
        case ("adapters", int(index), *rest):
            return dotted((_place(index, _id_of(tree, index)), *rest))
    return dotted(place)


def _id_of(tree: dict[object, object], index: int) -> object:
    match tree["adapters"]:
        case [*entries] if isinstance(entry := entries[index], dict):
            return entry.get("id")
    return None


def _place(index: int, adapter_id: object) -> str:
    """Name an entry."""
    return (
        f"adapters[{index}]" if adapter_id is None else f"adapters[{index}] ({_show(adapter_id)})"
    )


def _show(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more digits than a limit
        text = "a number of too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _join(problems: Sequence[str]) -> str:
    named = "; ".join(problems[:MAX_PROBLEMS])
    more = len(problems) - MAX_PROBLEMS
    return f"{named}; and {more} more" if more > 0 else named

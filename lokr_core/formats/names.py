"""ModuleNames: finds the places in a base model that a file's module name stands for."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum

from lokr_core.errors import UnsupportedModuleError
from lokr_core.formats.places import Place
from lokr_core.formats.vocabulary import Vocabulary
from lokr_core.spec import ModelSpec

PEFT_WRAPPER = "base_model.model."

_DENOISERS = ("transformer", "unet", "prior", "prior_prior")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
_OTHERS = (
    "transformer_2",
    "prior_text_encoder",
    "decoder",
    "vae",
    "vqgan",
    "image_encoder",
    "controlnet",
    "safety_checker",
)
_KNOWN = frozenset((*_DENOISERS, *_TEXT_ENCODERS, *_OTHERS))


class Spelling(Enum):
    """What stands between the parts of a module's path."""

    DOTTED = "."
    FLAT = "_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What a module's name may start with, and the components that it then belongs to."""

    pattern: re.Pattern[str]
    spelling: Spelling
    components: tuple[str, ...]

    def names_in(self, vocabulary: Vocabulary) -> Mapping[str, Set[Place]]:
        """Return the names of a component in the spelling that follows the prefix."""
        return vocabulary.flat if self.spelling is Spelling.FLAT else vocabulary.dotted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Lookup:
    """Where names with a prefix are looked up."""

    pattern: re.Pattern[str]
    places: Mapping[str, Set[Place]]


def _prefix(pattern: str, spelling: Spelling, *components: str) -> Prefix:
    return Prefix(pattern=re.compile(pattern), spelling=spelling, components=components)


_NAMED_ENCODER = r"text_encoders\.(?!clip_[lg]\.)[^.]+\.transformer\."
_BARE = _prefix(r"", Spelling.DOTTED, *_DENOISERS, *_TEXT_ENCODERS)
_PREFIXES: tuple[Prefix, ...] = (
    _BARE,
    _prefix(r"lycoris_", Spelling.FLAT, *_DENOISERS, *_TEXT_ENCODERS),
    # kohya, and what came after it; some trainers double the underscore.
    _prefix(r"lora_unet__?", Spelling.FLAT, *_DENOISERS),
    _prefix(r"lora_transformer_", Spelling.FLAT, *_DENOISERS),
    _prefix(r"lora_prior_unet_", Spelling.FLAT, "prior", "prior_prior"),
    _prefix(r"lora_te1?_", Spelling.FLAT, "text_encoder"),
    _prefix(r"lora_te2_", Spelling.FLAT, "text_encoder_2"),
    _prefix(r"lora_te3_", Spelling.FLAT, "text_encoder_3"),
    _prefix(r"lora_prior_te_", Spelling.FLAT, "text_encoder", "prior_text_encoder"),
    # ComfyUI, ai-toolkit, OneTrainer, diffusers.
    _prefix(r"(?:model\.)?diffusion_model\.", Spelling.DOTTED, *_DENOISERS),
    _prefix(r"(?:transformer|unet)\.", Spelling.DOTTED, *_DENOISERS),
    _prefix(r"text_encoder\.", Spelling.DOTTED, "text_encoder"),
    _prefix(r"text_encoder_2\.", Spelling.DOTTED, "text_encoder_2"),
    _prefix(r"text_encoder_3\.", Spelling.DOTTED, "text_encoder_3"),
    _prefix(r"text_encoders\.clip_l\.transformer\.", Spelling.DOTTED, "text_encoder"),
    _prefix(r"text_encoders\.clip_g\.transformer\.", Spelling.DOTTED, "text_encoder_2"),
    _prefix(_NAMED_ENCODER, Spelling.DOTTED, *_TEXT_ENCODERS),
    _prefix(rf"{_NAMED_ENCODER}model\.", Spelling.DOTTED, *_TEXT_ENCODERS),
)
# FLUX.1 has its T5 second, yet kohya's scripts number it as SD3 does.
_T5_OF_FLUX = _prefix(r"lora_te3_", Spelling.FLAT, "text_encoder_2")
_FLAT_PREFIX = re.compile(r"lycoris_|lora_(?:unet|transformer|prior|te\d?)_")


class ModuleNames:
    """The names by which files may call the modules of one base model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._vocabularies = {
            component: _vocabulary(spec, component) for component in spec.components
        }
        has_third = "text_encoder_3" in spec.components
        self._lookups = [
            _Lookup(pattern=prefix.pattern, places=prefix.names_in(self._vocabularies[component]))
            for prefix in (*_PREFIXES, *([] if has_third else [_T5_OF_FLUX]))
            for component in _owners(prefix, spec.components)
        ]

    def find(self, name: str) -> frozenset[Place]:
        """Return the places that a name may stand for: none if the base has no such module."""
        for spelled in (name, name.removeprefix(PEFT_WRAPPER)):
            if places := self._by_path(spelled) or self._by_prefix(spelled):
                return frozenset(places)
        return frozenset()

    def refusal(self, name: str) -> UnsupportedModuleError | None:
        """Return why no adapter can change the module of a name, if the base has such a one.

        PEFT wraps attention in a layer, and a projection within that in another.
        """
        path = name.removeprefix(PEFT_WRAPPER).replace(".base_layer.", ".")
        for component in ("", *_owners(_BARE, self.spec.components)):
            full = f"{component}.{path}" if component else path
            module = self.spec.modules.get(full)
            reason = self.spec.refusals.get(full) if module is None else module.refusal
            if reason is not None:
                return UnsupportedModuleError(full, reason)
        return None

    def _by_path(self, name: str) -> Set[Place]:
        """Return what a name stands for that starts with a component of the base."""
        component, dot, path = name.partition(".")
        if not component or component not in self._vocabularies:
            return set()
        return self._vocabularies[component].dotted.get(path if dot else name, set())

    def _by_prefix(self, name: str) -> Set[Place]:
        return {
            place
            for lookup in self._lookups
            if (match := lookup.pattern.match(name))
            for place in lookup.places.get(name[match.end() :], ())
        }


def _vocabulary(spec: ModelSpec, component: str) -> Vocabulary:
    start = f"{component}." if component else ""
    return Vocabulary.of(
        {
            path.removeprefix(start): module
            for path, module in spec.modules.items()
            if path == component or path.startswith(start)
        }
    )


def _owners(prefix: Prefix, components: Sequence[str]) -> Sequence[str]:
    """Return the components that a prefix stands for: if need be, those of unknown names."""
    named = [component for component in components if component in prefix.components]
    return named or [component for component in components if component not in _KNOWN]


def is_peft_style(keys: Iterable[str]) -> bool:
    """Return whether keys are those of PEFT, which keeps the scale out of the file.

    All other trainers keep an alpha in the file, flatten the module's path, or write ``lora_up``
    or, as diffusers did before PEFT, ``lora.up``.
    """
    return not any(
        _FLAT_PREFIX.match(key) or ".lora_up." in key or key.endswith((".alpha", ".up.weight"))
        for key in keys
    )

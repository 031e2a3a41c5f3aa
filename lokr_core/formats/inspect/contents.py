"""Contents: algorithms, forms and scales, counted over the modules of a file."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lokr_core.formats.file import TensorFile
from lokr_core.formats.inspect.report import Contents, FormCount, Listing, ScaleCount
from lokr_core.formats.modules import ReadModule

_BESIDE_FORMS = frozenset({"alpha", "scale", "dora_scale", "lora_magnitude_vector"})
# Of the metadata: what tells the algorithm, the scale or the base.
_TELLING = (
    "lokr_serve.",
    "modelspec.architecture",
    "modelspec.title",
    "ot_branch",
    "software",
    "ss_base_model_version",
    "ss_network_",
    "ss_sd_model_name",
)
_TELLING_SETTINGS = ("algo", "linear_dim", "linear_alpha", "factor", "full_matrix", "bypass_mode")
_TELLING_FIELDS = (
    "peft_type",
    "peft_version",
    "base_model_name_or_path",
    "r",
    "alpha",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "decompose_both",
    "decompose_factor",
    "modules_to_save",
)

_Form = tuple[str, int | None, tuple[tuple[str, tuple[int, ...]], ...]]


def contents_of(modules: Sequence[ReadModule], *, is_peft: bool) -> Contents:
    """Return what the modules of a file hold.

    Args:
        modules: Those that could be read.
        is_peft: Whether the file is one of PEFT.
    """
    forms = Counter(map(_form, modules))
    scales = Counter((m.scale.value, m.scale.source) for m in modules if m.scale is not None)
    gains = [m.change.gain for m in modules if m.change.gain is not None]
    return Contents(
        format="peft" if is_peft else "lycoris",
        num_modules=len(modules),
        algorithms=dict(sorted(Counter(name for m in modules for name in m.algorithms).items())),
        forms=tuple(
            FormCount(algorithm=name, rank=rank, shapes=dict(shapes), num_modules=count)
            for (name, rank, shapes), count in forms.most_common()
        ),
        scales=tuple(
            ScaleCount(scale=scale, source=source, num_modules=count)
            for (scale, source), count in scales.most_common()
        ),
        dora=dict(Counter(gain.axis.value for gain in gains)),
        replacements=_names(m for m in modules if m.change.replacement is not None),
        biases=_names(m for m in modules if m.change.bias is not None),
        norms=_names(m for m in modules if m.change.vector is not None),
    )


def _names(modules: Iterable[ReadModule]) -> Listing:
    return Listing.of([module.name for module in modules])


def _form(module: ReadModule) -> _Form:
    shapes = [
        (leaf, tuple(entry.value.shape))
        for leaf, entry in module.module.by_leaf.items()
        if leaf not in _BESIDE_FORMS
    ]
    rank = None if module.form is None else module.form.rank
    return next(iter(module.algorithms), "nothing"), rank, tuple(sorted(shapes))


def trainer_facts(file: TensorFile, config: bytes | None) -> Mapping[str, str]:
    """Return what the trainer wrote that tells how an adapter was trained.

    Args:
        file: The tensor file, with its metadata.
        config: PEFT's configuration beside it.
    """
    facts = {key: value for key, value in file.metadata.items() if key.startswith(_TELLING)}
    settings = _object(file.metadata.get("lycoris_config", ""))
    facts |= {
        f"lycoris_config.{key}": str(settings[key]) for key in _TELLING_SETTINGS if key in settings
    }
    fields = _object("" if config is None else config.decode("utf-8", "replace"))
    return facts | {
        key: str(fields[key]) for key in _TELLING_FIELDS if fields.get(key) not in (None, {}, [])
    }


def _object(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

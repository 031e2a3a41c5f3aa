"""Leaves: which part of a module's change a key names, in one spelling for all trainers."""

import re
from dataclasses import dataclass

_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"  # raw dumps of a PEFT model name the adapter
_PEFT_ONLY = rf"{_ADAPTER}(?:\.weight)?"
_UP = {"A": "down", "B": "up"}  # PEFT's names: kohya's


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyParts:
    """A key, split.

    The leaves are those of LyCORIS (``lokr_w1`` … ``hada_t2``, ``alpha``, ``dora_scale``, ``diff``,
    ``diff_b``, ``w_norm``, ``b_norm``, ``bias_indices``, ``bias_values``, ``bias_size``), with
    ``lora_up``, ``lora_down``, ``lora_mid`` and ``lora_up_bias`` for every LoRA, PEFT's
    ``lora_embedding_A``, ``lora_embedding_B`` and ``lora_magnitude_vector``, SD.Next's ``scale``,
    and whole parameters: ``weight`` and ``bias`` replace the base's, ``base_weight`` and
    ``base_bias`` replace it below the deltas of the same file, and ``original_weight`` and
    ``original_bias`` are the base's own, which PEFT keeps beside what replaces them.
    """

    module: str
    leaf: str


_LEAVES = (
    re.compile(rf"(.+)\.(lokr_w[12](?:_[ab])?|lokr_t2|hada_w[12]_[ab]|hada_t[12]){_PEFT_ONLY}"),
    re.compile(rf"(.+)\.(lora_embedding_[AB]|lora_magnitude_vector){_PEFT_ONLY}"),
    re.compile(r"(.+)\.(lora_(?:up|down|mid))\.weight"),
    re.compile(
        r"(.+)\.(alpha|dora_scale|scale|diff|diff_b|w_norm|b_norm|bias_(?:indices|values|size))"
    ),
)
_LORA_AB = re.compile(rf"(.+)\.lora_([AB]){_ADAPTER}\.weight")
_LORA_BIAS = re.compile(rf"(.+)\.lora_(?:B{_ADAPTER}|up)\.bias")
_LORA_DOTTED = re.compile(r"(.+?)(?:\.lora|\.lora_linear_layer|(?<=_lora))\.(up|down)\.weight")
_MAGNITUDE = re.compile(r"(.+)\.magnitude(?:\.weight)?")  # ai-toolkit's DoRA, per output
_WRAPPED = re.compile(
    r"(.+?)\.(modules_to_save\.[^.]+|original_module|base_layer)(\..+)?\.(weight|bias)"
)
_WHOLE = re.compile(r"(.+)\.(weight|bias)")
_WRAPPERS = {"original_module": "original_", "base_layer": "base_"}

_UNSERVED = tuple(
    (re.compile(rf".+\.(?:{leaves})(?:\..+)?"), algorithm)
    for leaves, algorithm in (
        (r"oft_blocks|oft_diag|rescale|oft_[rRsS]|oft_embedding_R|boft_[Rs]", "OFT or BOFT"),
        (r"[ab][12]\.weight|bm\.weight|glora_.+", "GLoRA"),
        (r"on_input|ia3_l", "IA3"),
        (r"[pq]_layer\.weight|lambda_layer", "T-LoRA, whose base factors no file holds"),
        (r"set_weight|reshape_weight", "a replaced weight of another shape (set_weight)"),
        (r"lokr_t1", "a LoKr whose first factor has a Tucker core (lokr_t1)"),
        (r"lora_E|ranknum", "AdaLoRA"),
        (r"lora_(?:latent|cache)_.+|lora_ga_.+", "a variant of LoRA"),
        (r"token_adapter\.trainable_tokens_.+|trainable_tokens_.+", "trainable tokens"),
        (r"p?vera_(?:lambda_.+|[AB])|(?:base_model\.)?vera_[AB]", "VeRA"),
        (
            r"(?:adamss|beft|c3a|deft|delora|fourierft|frod|gralora|hira|hra|lily|ln_tuning|miss"
            r"|bone|osf|peanut|poly|psoft|randlora|road|shadow|shira|supertuning|tinylora|unilora"
            r"|vblora|waveft)_[^.]+",
            "one of PEFT's algorithms other than LoKr, LoHa and LoRA",
        ),
    )
)


def split_key(key: str) -> KeyParts | None:
    """Split a key into its module and its leaf; None if it ends in no leaf that is served."""
    for pattern in _LEAVES:
        if match := pattern.fullmatch(key):
            return KeyParts(module=match[1], leaf=match[2])
    if match := _LORA_AB.fullmatch(key):
        return KeyParts(module=match[1], leaf=f"lora_{_UP[match[2]]}")
    if match := _LORA_DOTTED.fullmatch(key):
        return KeyParts(module=match[1], leaf=f"lora_{match[2]}")
    if match := _LORA_BIAS.fullmatch(key):
        return KeyParts(module=match[1], leaf="lora_up_bias")
    if match := _MAGNITUDE.fullmatch(key):
        return KeyParts(module=match[1], leaf="lora_magnitude_vector")
    return _split_parameter(key)


def _split_parameter(key: str) -> KeyParts | None:
    """Split the key of a whole parameter."""
    if match := _WRAPPED.fullmatch(key):
        head, wrapper, tail, parameter = match.groups()
        return KeyParts(module=head + (tail or ""), leaf=_WRAPPERS.get(wrapper, "") + parameter)
    if match := _WHOLE.fullmatch(key):
        return KeyParts(module=match[1], leaf=match[2])
    return None


def unserved_algorithm(key: str) -> str | None:
    """Return the name of the algorithm that a key belongs to, if it is one that is not served."""
    for pattern, algorithm in _UNSERVED:
        if pattern.fullmatch(key):
            return algorithm
    return None

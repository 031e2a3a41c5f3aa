"""What a model demands of attention, and the refusal of what paged attention would leave out.

The paged functions, transformers' and ours, drop arguments that they do not know, and then give
wrong numbers without a word. So one token is sent through a model when it is loaded, to see them.
"""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from lokr_serve.errors import ModelError

PROBE_NAME = "lokr_serve_probe"

UNSERVED = MappingProxyType(
    {
        "softcap": "soft-capped attention scores",
        "position_bias": "position biases",
        "s_aux": "attention sinks",
        "sinks": "attention sinks",
        "indices": "sparse attention",
        "block_indices": "sparse attention",
    }
)


def require_served_attention(model: PreTrainedModel) -> None:
    """Check that attention over pages can do all that a model demands of attention.

    Raises:
        ModelError: It cannot; the error names the feature.
    """
    name = model.config._attn_implementation
    assert name is not None
    AttentionInterface.register(PROBE_NAME, _probe_with_sinks if name == "eager" else _probe)
    model.set_attn_implementation(PROBE_NAME)
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    finally:
        model.set_attn_implementation(name)


def _probe_with_sinks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **demands: Any
) -> tuple[Tensor, None]:
    """Probe for transformers' ``paged|eager``, which finds sinks on the module itself."""
    if "sinks" in dict(module.named_parameters(recurse=False)):
        demands.pop("s_aux", None)
    return _probe(module, query, key, value, *args, **demands)


def _probe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **demands: Any
) -> tuple[Tensor, None]:
    """Return the attention of one token to itself, [1, 1, heads, head size], or refuse."""
    if (feature := unserved_feature(demands)) is not None:
        raise ModelError(
            f"the model has {feature} (in {type(module).__name__}), which attention over pages "
            "leaves out; it cannot be served"
        )
    shared = query.shape[1] // value.shape[1]
    return value.repeat_interleave(shared, 1).transpose(1, 2), None


def unserved_feature(demands: dict[str, Any]) -> str | None:
    """Return the first of the arguments of attention that is not served, in words."""
    found = (words for key, words in UNSERVED.items() if demands.get(key) is not None)
    return next(found, None)

"""Attention over packed tokens on the CPU, one request at a time.

The stock function attends all tokens of a step to all keys of it under a mask, which grows with
the square of the number of requests; here each request's tokens meet its own keys only.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lokr_serve.errors import ModelError
from lokr_serve.text.demands import unserved_feature

ATTENTION_NAME = "sdpa"

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def register_attention() -> None:
    """Put per-request attention in place of the stock ``sdpa``, for calls with a paged cache."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention of packed tokens, [1, T, heads, head size].

    Args:
        module: The attention layer.
        query: [1, heads, T, head size].
        key: New keys, [1, key heads, T, head size]; ``value`` likewise.
        value: New values.
        attention_mask: Read only without a paged cache.
        kwargs: What the model passes on; with a paged cache ``cu_seq_lens_q`` and
            ``cu_seq_lens_k`` say where each request begins, and ``sliding_window`` how many
            keys a token sees, if not all.
    """
    cache = kwargs.get("cache")
    if not isinstance(cache, PagedAttentionCache):
        stock: Attention = sdpa_attention_forward
        return stock(module, query, key, value, attention_mask, **kwargs)
    if (feature := unserved_feature(kwargs)) is not None:
        raise ModelError(f"{feature}: attention over pages leaves them out")
    layer = module.layer_idx
    assert isinstance(layer, int)
    key, value = cache.update(key_states=key, value_states=value, layer_idx=layer, kwargs=kwargs)
    window = kwargs.get("sliding_window")
    out = torch.empty_like(query)
    for rows, keys in _requests(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]):
        out[:, :, rows] = _attend(
            query[:, :, rows], key[:, :, keys], value[:, :, keys], window, kwargs.get("scaling")
        )
    return out.transpose(1, 2).contiguous(), None


def _requests(query_ends: Tensor, key_ends: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the tokens and the keys of each request."""
    rows: list[int] = query_ends.tolist()
    keys: list[int] = key_ends.tolist()
    for i in range(len(rows) - 1):
        if rows[i] < rows[i + 1]:
            yield slice(rows[i], rows[i + 1]), slice(keys[i], keys[i + 1])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None
) -> Tensor:
    """Return one request's attention, [1, heads, tokens, head size]."""
    num_heads, num_tokens = query.shape[1:3]
    num_key_heads, num_keys = key.shape[1:3]
    mask = _mask(num_tokens, num_keys, window, query.device)
    if num_tokens == 1:  # the heads that share a key become rows of one product
        grouped = query.reshape(1, num_key_heads, num_heads // num_key_heads, -1)
        out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
        return out.reshape(query.shape)
    shared = num_heads // num_key_heads
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    is_causal = mask is None
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=is_causal
    )


def _mask(
    num_tokens: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Return which keys each token sees, [tokens, keys], or None where causality says it all."""
    is_windowed = window is not None and num_keys > window
    if not is_windowed and num_tokens in (1, num_keys):
        return None
    positions = torch.arange(num_keys - num_tokens, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    mask = keys <= positions
    return mask & (keys > positions - window) if window is not None else mask

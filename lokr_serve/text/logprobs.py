"""Log-probabilities of sampled tokens, and of the most probable ones beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lokr_serve.types import TokenLogprob, TopLogprob


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Return the log-probability of one token of each row, and its row's most probable tokens.

    Args:
        logits: As the model gave them, [N, V]; computed in float64 if they are, else in float32.
        token_ids: The token of each row.
        num_top: How many of the most probable tokens each row wants; the row's token may be one of
            them, and of equally probable tokens the lowest id comes first.
    """
    dtype = torch.float64 if logits.dtype is torch.float64 else torch.float32
    clean = torch.log_softmax(logits, dim=-1, dtype=dtype)  # [N, V]
    chosen = clean.gather(-1, torch.tensor(token_ids, device=clean.device).unsqueeze(1))
    rows = zip(token_ids, chosen.flatten().tolist(), _most_probable(clean, num_top), strict=True)
    return [TokenLogprob(token_id=id_, logprob=value, top=top) for id_, value, top in rows]


def _most_probable(clean: Tensor, num_top: Sequence[int]) -> list[tuple[TopLogprob, ...]]:
    top: list[list[TopLogprob]] = [[] for _ in num_top]
    most = min(max(num_top), clean.shape[1])
    if most == 0:
        return [() for _ in num_top]
    floor = clean.topk(most).values[:, -1:]  # a value: the ids of a top-k depend on how it sorts
    rows, ids = (clean >= floor).nonzero(as_tuple=True)  # by row, then by id
    values = clean[rows, ids]
    by_value = values.sort(descending=True, stable=True).indices
    order = by_value[rows[by_value].sort(stable=True).indices]  # by row, value, id
    first = torch.searchsorted(rows, torch.arange(len(num_top), device=rows.device))
    place = torch.arange(len(rows), device=rows.device) - first[rows]
    wanted = place < torch.tensor(num_top, device=rows.device)[rows]
    order, rows = order[wanted], rows[wanted]
    for row, id_, value in zip(
        rows.tolist(), ids[order].tolist(), values[order].tolist(), strict=True
    ):
        top[row].append(TopLogprob(token_id=id_, logprob=value))
    return [tuple(best) for best in top]

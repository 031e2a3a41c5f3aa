"""Drawing tokens from logits: temperature, top-k, top-p, min-p and the inverse of the CDF.

Probabilities are turned into whole numbers of 2⁻⁶² once, and everything after that is integer
arithmetic, which is exact: sums do not depend on the order of adding, nor on who else is drawn for
at the same time. Each filter is a floor; tokens below it get weight 0. Tokens exactly as probable
as the last one that a filter keeps are kept too, so no result hangs on how a sort orders ties.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lokr_serve.types import SamplingParams

WEIGHT_BITS = 62  # the weights of a row add up to about 2**62, so they never overflow
DRAW_BITS = 53
NUCLEUS_TOKENS = 512  # a nucleus this small is found without sorting the vocabulary


def draw(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Return a token id for each row; -1 where no logit, or an infinite one, is the largest.

    The filters work one after the other: top-k, top-p on what is left of it, and min-p relative to
    the most probable token; all of them after the temperature.

    Args:
        logits: Float64, [N, V]; overwritten.
        params: One for each row, none of them greedy.
        draws: One for each row, at least 0 and below 1; the share of the probability, in the order
            of token ids, at which the token lies.
    """
    peak = logits.amax(dim=-1, keepdim=True)  # [N, 1]
    temperature = _column([row.temperature for row in params], like=logits)
    logits.sub_(peak).div_(temperature)  # in this order, so that no temperature overflows
    weights = torch.softmax(logits, dim=-1).mul_(2.0**WEIGHT_BITS).to(torch.int64)
    _keep_top_k(weights, params)
    _keep_top_p(weights, params)
    _keep_min_p(weights, params)
    reached = weights.cumsum(dim=-1)  # [N, V]
    totals: list[int] = reached[:, -1].tolist()
    targets = [_share(total, u) for total, u in zip(totals, draws, strict=True)]
    found = torch.searchsorted(reached, _column(targets, like=weights), right=True)  # [N, 1]
    ids: list[int] = torch.where(peak.isfinite(), found, -1).flatten().tolist()
    return ids


def _share(total: int, u: float) -> int:
    """Return ``u * total``, rounded down and without rounding before."""
    return (int(u * 2**DRAW_BITS) * total) >> DRAW_BITS


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)  # [N, 1]


def _keep_top_k(weights: Tensor, params: Sequence[SamplingParams]) -> None:
    rows = [n for n, row in enumerate(params) if 0 < row.top_k < weights.shape[1]]
    if rows:
        chosen = weights[rows]
        top_k = [params[n].top_k for n in rows]
        best = chosen.topk(max(top_k)).values  # descending
        _drop_below(weights, rows, best.gather(-1, _column(top_k, like=weights) - 1))


def _keep_top_p(weights: Tensor, params: Sequence[SamplingParams]) -> None:
    rows = [n for n, row in enumerate(params) if row.top_p < 1]
    if rows:
        chosen = weights[rows]
        totals = chosen.sum(dim=-1, keepdim=True)  # exact, in whatever order
        top_p = torch.tensor([[params[n].top_p] for n in rows], dtype=torch.float64)
        needed = (totals * top_p.to(weights.device)).to(torch.int64)
        _drop_below(weights, rows, _nucleus_floor(chosen, needed))


def _keep_min_p(weights: Tensor, params: Sequence[SamplingParams]) -> None:
    rows = [n for n, row in enumerate(params) if row.min_p > 0]
    if rows:
        best = weights[rows].amax(dim=-1, keepdim=True)
        min_p = torch.tensor([[params[n].min_p] for n in rows], dtype=torch.float64)
        floor = (best * min_p.to(weights.device)).ceil().to(torch.int64)
        _drop_below(weights, rows, torch.minimum(floor, best))  # a product may be rounded up


def _nucleus_floor(weights: Tensor, needed: Tensor) -> Tensor:
    """Return the weight of the last of the heaviest tokens that together weigh ``needed``."""
    best = weights.topk(min(NUCLEUS_TOKENS, weights.shape[1])).values
    floor = _weight_where_reached(best, needed)
    short = (best.sum(dim=-1) < needed.squeeze(1)).nonzero().flatten()
    if short.numel():
        ordered = weights[short].sort(dim=-1, descending=True).values
        floor[short] = _weight_where_reached(ordered, needed[short])
    return floor


def _weight_where_reached(ordered: Tensor, needed: Tensor) -> Tensor:
    at = torch.searchsorted(ordered.cumsum(dim=-1), needed)
    return ordered.gather(-1, at.clamp(max=ordered.shape[1] - 1))  # a product may be rounded up


def _drop_below(weights: Tensor, rows: list[int], floor: Tensor) -> None:
    chosen = weights[rows]
    weights[rows] = chosen.masked_fill_(chosen < floor, 0)

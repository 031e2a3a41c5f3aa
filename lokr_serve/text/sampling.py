"""From the logits of a step to the next token of each row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_serve.errors import NumericsError
from lokr_serve.text.drawing import draw
from lokr_serve.text.logprobs import token_logprobs
from lokr_serve.text.seeds import uniform
from lokr_serve.types import SamplingParams, TokenLogprob

MAX_WORK_ELEMENTS = 1 << 21  # of float64 at a time: 16 MiB for each of the few copies


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplerRow:
    """What a row's next token depends on, beside its logits."""

    params: SamplingParams
    seed: int  # of this sequence, not of its request
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]  # until now; how many they are is the position of the draw
    end_ids: frozenset[int]  # EOS and stop tokens, barred until min_tokens are there

    @property
    def bars_end(self) -> bool:
        """Whether the sequence is too short to end yet."""
        return len(self.output_ids) < self.params.min_tokens

    @property
    def is_plain(self) -> bool:
        """Whether the next token is simply the most probable one."""
        params = self.params
        return (
            params.temperature == 0
            and params.repetition_penalty == 1
            and params.presence_penalty == 0
            and params.frequency_penalty == 0
            and not self.bars_end
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The next token of a row."""

    token_id: int
    logprob: TokenLogprob | None = None  # if the request asks for it


def sample(logits: Tensor, rows: Sequence[SamplerRow]) -> list[Sampled | NumericsError]:
    """Return the next token of each row, or what is wrong with the row.

    A row's result depends on its own logits and row alone. Log-probabilities are of the model's
    own distribution; then come, in float64: the bar on ends before ``min_tokens``, the repetition
    penalty over prompt and output, the frequency and presence penalties over the output, and the
    choice: the largest logit (the lowest id of equal ones) or a draw, see :mod:`.drawing`.

    Args:
        logits: [N, V]; not changed.
        rows: One for each row.
    """
    ids = _best_ids(logits)
    shaped = [n for n, row in enumerate(rows) if ids[n] >= 0 and not row.is_plain]
    greedy = [n for n in shaped if rows[n].params.is_greedy]
    drawn = [n for n in shaped if not rows[n].params.is_greedy]
    max_rows = max(1, MAX_WORK_ELEMENTS // logits.shape[1])
    for part in (*_parts(greedy, max_rows), *_parts(drawn, max_rows)):
        chosen = _choose(logits[part], [rows[n] for n in part])
        for n, token_id in zip(part, chosen, strict=True):
            ids[n] = token_id
    logprobs = _logprobs(logits, rows, ids)
    return [
        Sampled(token_id=ids[n], logprob=logprobs.get(n)) if ids[n] >= 0 else NumericsError(n)
        for n in range(len(rows))
    ]


def _best_ids(logits: Tensor) -> list[int]:
    """Return the id of the largest logit of each row; -1 if one is NaN, or it is infinite."""
    best = logits.max(dim=-1)  # NaN counts as the largest; of equal ones, the first
    ids: list[int] = torch.where(best.values.isfinite(), best.indices, -1).tolist()
    return ids


def _parts(rows: list[int], max_rows: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), max_rows):
        yield rows[start : start + max_rows]


def _choose(logits: Tensor, rows: Sequence[SamplerRow]) -> list[int]:
    """Penalise, then take the best or draw; all rows are greedy, or none is."""
    work = logits.to(torch.float64, copy=True)
    _bar_ends(work, rows)
    _penalise_repetition(work, rows)
    _penalise_output(work, rows)
    if rows[0].params.is_greedy:
        return _best_ids(work)
    draws = [uniform(row.seed, len(row.output_ids)) for row in rows]
    return draw(work, [row.params for row in rows], draws)


def _bar_ends(work: Tensor, rows: Sequence[SamplerRow]) -> None:
    vocab_size = work.shape[1]
    barred = [
        (n, [token_id for token_id in row.end_ids if token_id < vocab_size])  # others never come
        for n, row in enumerate(rows)
        if row.bars_end
    ]
    work.view(-1)[_places(barred, work)] = -torch.inf


def _penalise_repetition(work: Tensor, rows: Sequence[SamplerRow]) -> None:
    penalised = [(n, row) for n, row in enumerate(rows) if row.params.repetition_penalty != 1]
    seen = [(n, ids) for n, row in penalised for ids in (row.prompt_ids, row.output_ids)]
    places = _places(seen, work)
    penalty = _per_row([row.params.repetition_penalty for row in rows], places, work)
    values = work.view(-1)[places]
    work.view(-1)[places] = torch.where(values > 0, values / penalty, values * penalty)


def _penalise_output(work: Tensor, rows: Sequence[SamplerRow]) -> None:
    penalised = [
        (n, row.output_ids)
        for n, row in enumerate(rows)
        if row.params.presence_penalty != 0 or row.params.frequency_penalty != 0
    ]
    places, counts = _places(penalised, work).unique(return_counts=True)
    frequency = _per_row([row.params.frequency_penalty for row in rows], places, work)
    presence = _per_row([row.params.presence_penalty for row in rows], places, work)
    work.view(-1)[places] -= frequency * counts + presence


def _places(ids_of_rows: Iterable[tuple[int, Sequence[int]]], work: Tensor) -> Tensor:
    """Return where the tokens of rows lie in the flattened ``work``."""
    places = [torch.empty(0, dtype=torch.int64)]
    for n, ids in ids_of_rows:
        if ids:
            places.append(torch.asarray(ids, dtype=torch.int64) + n * work.shape[1])
    return torch.cat(places).to(work.device)


def _per_row(values: Sequence[float], places: Tensor, work: Tensor) -> Tensor:
    """Return for each place the value of its row."""
    column = torch.tensor(values, dtype=work.dtype, device=work.device)
    return column[places // work.shape[1]]


def _logprobs(
    logits: Tensor, rows: Sequence[SamplerRow], ids: Sequence[int]
) -> dict[int, TokenLogprob]:
    num_top = {
        n: row.params.logprobs
        for n, row in enumerate(rows)
        if row.params.logprobs is not None and ids[n] >= 0
    }
    if not num_top:
        return {}
    chosen = list(num_top)
    values = token_logprobs(logits[chosen], [ids[n] for n in chosen], list(num_top.values()))
    return dict(zip(chosen, values, strict=True))

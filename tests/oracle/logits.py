"""Teacher-forced logits of the attached model, in mixed batches, against the peers' models."""

import random
from collections.abc import Sequence
from typing import get_args

import torch

from lokr_core import AdapterMix, AdapterRef, attach, read_adapter
from lokr_core.adapted import ApplyWord
from lokr_serve.types import AdapterWeight
from tests.oracle.peers import AdapterFile, Architecture, PeerPart, Peers
from tests.oracle.traffic import Traffic

MAX_BATCH = 6


class Attached:
    """An attached model that has every version of every adapter."""

    def __init__(self, architecture: Architecture, peers: Peers, dtype: torch.dtype) -> None:
        self._peers = peers
        self._model = architecture.make_model(dtype)
        self._adapted = attach(self._model)
        self._refs: dict[AdapterFile, AdapterRef] = {}
        for adapter_id, files in peers.files.items():
            for file in files:
                path = peers.folder / file.source
                adapter = read_adapter(path, self._adapted.spec, adapter_id)
                self._adapted.add(adapter)
                self._refs[file] = adapter.ref

    def _mix(self, parts: Sequence[PeerPart]) -> AdapterMix:
        weights = {self._refs[part.file]: part.asked.weight for part in parts}
        patterns = {self._refs[part.file]: dict(part.asked.module_weights) for part in parts}
        return AdapterMix.of(weights, patterns)

    @torch.no_grad()
    def max_error(
        self, rows: Sequence[Sequence[PeerPart]], token_ids: torch.Tensor, apply: ApplyWord
    ) -> float:
        """Return the largest error of a batch, as a share of the largest logit in magnitude.

        Args:
            rows: One mix for each row.
            token_ids: [rows, tokens].
            apply: How the mixes are applied.
        """
        with self._adapted.using([self._mix(parts) for parts in rows], apply=apply):
            found = self._model(token_ids).logits
        errors = []
        for row, parts in enumerate(rows):
            wanted = self._peers.logits(parts, token_ids[row].tolist())
            errors.append(float((found[row] - wanted).abs().max() / wanted.abs().max()))
        return max(errors)


def compare_logits(
    architecture: Architecture, peers: Peers, dtype: torch.dtype, *, num_rows: int, seed: int
) -> float:
    """Return the largest error over random batches whose rows carry random mixes."""
    draws = random.Random(seed)
    traffic = Traffic(architecture, seed)
    attached = Attached(architecture, peers, dtype)
    max_error, num_done = 0.0, 0
    while num_done < num_rows:
        requests = [traffic.request(n) for n in range(min(MAX_BATCH, num_rows - num_done))]
        num_tokens = min(len(request.prompt_ids) for request in requests)
        token_ids = torch.tensor([request.prompt_ids[:num_tokens] for request in requests])
        rows = [_parts(peers, request.parts, draws) for request in requests]
        error = attached.max_error(rows, token_ids, draws.choice(get_args(ApplyWord)))
        max_error, num_done = max(max_error, error), num_done + len(requests)
    return max_error


def _parts(peers: Peers, asked: Sequence[AdapterWeight], draws: random.Random) -> list[PeerPart]:
    """Return the parts of a mix, each in a random version."""
    return [PeerPart(file=draws.choice(peers.files[part.adapter_id]), asked=part) for part in asked]

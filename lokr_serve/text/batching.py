"""Rows of many requests in one step, over transformers' continuous batching.

With prefixes and attention the one place that touches its internals; a contract test names them.
It is driven step by step on the engine's thread: transformers keeps the paged cache, schedules,
splits prompts and preempts; the mix of each request travels with the batch's own input tensors.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    ProtoPretrainedModel,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState
from transformers.generation.logits_process import LogitsProcessorList

from lokr_core import Adapted, AdapterMix, Apply, RowSpan
from lokr_serve.config import TextSettings
from lokr_serve.errors import NumericsError
from lokr_serve.text.attention import ATTENTION_NAME, register_attention
from lokr_serve.text.cache_share import cache_share, num_pages
from lokr_serve.text.prefixes import key_prefixes
from lokr_serve.text.sampling import Sampled, SamplerRow, sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchRow:
    """One sequence as the batch sees it."""

    row_id: str
    token_ids: tuple[int, ...]  # prompt, and for a row that starts over its output until then
    mix: AdapterMix
    apply: Apply
    salt: str  # prefixes are shared only between rows of one salt
    sampler: SamplerRow

    @property
    def namespace(self) -> bytes:
        """What cached prefixes of this row are keyed by, beside their tokens."""
        text = f"{self.mix.parts!r}|{self.apply.value}|{self.salt}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one step gave."""

    tokens: tuple[tuple[str, Sampled | NumericsError], ...]  # by row id
    num_rows: int
    num_mixes: int
    num_merged_rows: int


class _MixIndices(ContinuousBatchingLogitsProcessorList):
    """Writes the mix of each request into the batch's input tensors."""

    def __init__(self, rows: Mapping[str, BatchRow]) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = 1
        self._rows = rows
        self.ways: list[tuple[AdapterMix, Apply]] = []  # of this step, by index

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill the argument of a request that is not there."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: Tensor
    ) -> Tensor:
        """Write the index of each request's mix, in the order of the batch."""
        indices: dict[tuple[AdapterMix, Apply], int] = {}
        for request in requests_in_batch:
            row = self._rows[request.state.request_id]
            indices.setdefault((row.mix, row.apply), len(indices))
        rows = (self._rows[request.state.request_id] for request in requests_in_batch)
        written = torch.tensor([indices[row.mix, row.apply] for row in rows], dtype=torch.int32)
        arg_storage[0, : len(written)] = written.to(arg_storage.device)
        self.ways = list(indices)
        return arg_storage


class _Runner(ModelRunner):
    """Runs a step's forward with each request's mix, and samples with our sampler."""

    def __init__(
        self,
        processor: ContinuousBatchProcessor,
        adapted: Adapted,
        indices: _MixIndices,
        rows: Mapping[str, BatchRow],
    ) -> None:
        super().__init__(
            logit_processor=indices,
            cb_config=processor.cb_config,
            inputs_and_outputs=processor.inputs_and_outputs,
            cache=processor.cache,
            do_sample=False,
            return_logprobs=False,
        )
        assert isinstance(processor.inputs_and_outputs, ContinuousBatchingIOs)
        self._inputs = processor.inputs_and_outputs
        self._adapted = adapted
        self._indices = indices
        self._rows = rows
        self._head_path = _head_path(adapted)
        self.sampled: list[tuple[str, Sampled | NumericsError]] = []

    def _forward_process_and_sample(
        self,
        model: nn.Module,
        batch_data: dict[str, Any],
        carry_over_ids: Tensor,
        prev_output_ids: Tensor,
        output_ids: Tensor,
    ) -> None:
        batch = self._inputs.requests_in_batch
        emitting = [request for request in batch if request.has_new_token]
        spans = self._spans(batch_data)
        head = [
            RowSpan(mix=span.mix, apply=span.apply, num_rows=1)
            for span, request in zip(spans, batch, strict=True)
            if request.has_new_token
        ]
        seen = batch_data["logits_indices"][: len(emitting)]
        batch_data["logits_indices"] = seen
        if "logits_to_keep" in batch_data:
            batch_data["logits_to_keep"] = seen
        if batch_data["attention_mask"] is None:
            batch_data["attention_mask"] = self._no_mask(batch_data)
        with self._adapted.route(spans, self._head(head, spans, batch_data)):
            logits: Tensor = model(**batch_data).logits[0]
        if "logits_to_keep" not in batch_data:
            logits = logits[seen]  # [emitting, V]
        self._sample_rows(logits, emitting, output_ids)

    def _head(
        self, head: list[RowSpan], spans: list[RowSpan], batch_data: dict[str, Any]
    ) -> tuple[str, list[RowSpan]] | None:
        """Return the head's path with the rows it sees: all tokens, or those that emit."""
        if self._head_path is None:
            return None
        return self._head_path, head if "logits_to_keep" in batch_data else spans

    def _spans(self, batch_data: dict[str, Any]) -> list[RowSpan]:
        ends: list[int] = batch_data["cu_seq_lens_q"].tolist()
        indices: list[int] = batch_data["logits_processor_args"][0].tolist()
        ways = [self._indices.ways[index] for index in indices]
        return [
            RowSpan(mix=mix, apply=apply, num_rows=ends[i + 1] - ends[i])
            for i, (mix, apply) in enumerate(ways)
        ]

    def _no_mask(self, batch_data: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """Return what tells the model that attention masks for itself."""
        mask = torch.zeros(1, 1, 1, 1)
        kinds = list(batch_data["cu_seq_lens_k"])
        return mask if len(kinds) == 1 else dict.fromkeys(kinds, mask)

    def _sample_rows(
        self, logits: Tensor, emitting: list[FutureRequestState], output_ids: Tensor
    ) -> None:
        rows = [self._rows[request.state.request_id] for request in emitting]
        results = sample(logits, [row.sampler for row in rows]) if rows else []
        self.sampled = [(row.row_id, result) for row, result in zip(rows, results, strict=True)]
        ids = [result.token_id if isinstance(result, Sampled) else 0 for result in results]
        output_ids[0, : len(ids)] = torch.tensor(
            ids, dtype=output_ids.dtype, device=output_ids.device
        )


class PagedBatch:
    """Rows that share steps and a paged cache of keys and values.

    Used by one thread. After a step has raised, only :meth:`reset` may follow.
    """

    def __init__(self, adapted: Adapted, settings: TextSettings) -> None:
        model = adapted.model
        assert isinstance(model, PreTrainedModel)
        self._model = model
        self._settings = settings
        self._rows: dict[str, BatchRow] = {}
        self._cached_tokens: dict[str, int] = {}
        self._scheduled: list[str] = []
        self._processor, self._indices = _build_processor(model, settings, self._rows)
        self._runner = _Runner(self._processor, adapted, self._indices, self._rows)
        self._processor.model_runner = self._runner
        assert isinstance(self._processor.inputs_and_outputs, ContinuousBatchingIOs)
        self._inputs = self._processor.inputs_and_outputs
        if model.config._attn_implementation == ATTENTION_NAME and model.device.type == "cpu":
            register_attention()
            vars(self._inputs).update(attention_mask=None)  # attention keeps requests apart
        key_prefixes(
            self._processor.cache, lambda row_id: self._rows[row_id].namespace, self._cached_tokens
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def add(self, row: BatchRow) -> None:
        """Let a row take part from the next step on."""
        assert row.row_id not in self._rows, "row ids are never used twice"
        self._rows[row.row_id] = row
        state = RequestState(
            request_id=row.row_id, initial_tokens=list(row.token_ids), max_new_tokens=None
        )
        self._processor.scheduler.add_waiting_request(state)

    def remove(self, row_id: str) -> None:
        """Take a row out and free what it holds."""
        if self._rows.pop(row_id, None) is None:
            return
        self._cached_tokens.pop(row_id, None)
        scheduler = self._processor.scheduler
        scheduler.set_request_cancellation(row_id)
        scheduler.clear_cancelled_requests()
        scheduler.block_new_requests = False  # set by a preemption until some row has ended

    def cached_tokens(self, row_id: str) -> int:
        """Return how many tokens of a row's prompt the prefix cache had."""
        return self._cached_tokens.get(row_id, 0)

    def cache_share(self) -> float:
        """Return the share of the paged cache that rows hold, 0 to 1."""
        rows = (row.sampler for row in self._rows.values())
        return cache_share(self._processor.cache, rows, self._settings)

    def scheduled(self) -> list[str]:
        """Return the rows of the last step; all rows if it raised before its batch was known."""
        return self._scheduled

    @torch.no_grad()
    def step(self) -> StepOutcome | None:
        """Run one step, or return None if there is nothing to run."""
        self._scheduled = list(self._rows)
        if not self._processor.prepare_next_batch():
            return None
        batch = self._inputs.requests_in_batch
        self._scheduled = [request.state.request_id for request in batch]
        self._processor._generation_step(self._model)
        self._processor.update_batch()
        rows = [self._rows[row_id] for row_id in self._scheduled]
        return StepOutcome(
            tokens=tuple(self._runner.sampled),
            num_rows=len(rows),
            num_mixes=len(self._indices.ways),
            num_merged_rows=sum(row.apply is Apply.MERGED for row in rows),
        )

    def reset(self) -> None:
        """Take every row out, whatever state a failed step left them in."""
        self._rows.clear()
        self._cached_tokens.clear()
        self._processor.reset()


def _build_processor(
    model: PreTrainedModel, settings: TextSettings, rows: Mapping[str, BatchRow]
) -> tuple[ContinuousBatchProcessor, _MixIndices]:
    manager = ContinuousBatchingManager(
        cast(ProtoPretrainedModel, model),
        GenerationConfig(do_sample=False),
        ContinuousBatchingConfig(
            page_size=settings.page_tokens,
            num_blocks=num_pages(settings),
            max_batch_tokens=settings.max_step_tokens,
            max_requests_per_batch=settings.max_rows,
            max_blocks_per_request=0,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        ),
    )
    indices = _MixIndices(rows)
    manager.logit_processor = indices
    return manager._create_batch_processor(), indices


def _head_path(adapted: Adapted) -> str | None:
    """Return the path of the output head, if it is among the modules that adapters change."""
    model = adapted.model
    assert isinstance(model, PreTrainedModel)
    head = model.get_output_embeddings()
    paths: Iterable[str] = (
        path for path, spec in adapted.spec.modules.items() if spec.module is head
    )
    return next(iter(paths), None)

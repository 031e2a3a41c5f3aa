"""transformers' continuous batching as the engine drives it, but with its own runner."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaForCausalLM,
)
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
from transformers.generation.continuous_batching.scheduler import Scheduler
from transformers.generation.logits_process import LogitsProcessorList

from tests.tiny import tiny_llama

PAGE = 4


class Ones(ContinuousBatchingLogitsProcessorList):
    """Asks for one line of the batch's input tensors, and writes ones where rows are."""

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = 1
        self.seen: list[list[str]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill the argument of a request that is not there."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: Tensor
    ) -> Tensor:
        """Note who is in the batch."""
        self.seen.append([request.state.request_id for request in requests_in_batch])
        arg_storage[0, : len(requests_in_batch)] = 1
        return arg_storage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rig:
    """A processor as the engine builds it, with the stock runner."""

    model: LlamaForCausalLM
    processor: ContinuousBatchProcessor
    ones: Ones

    @property
    def inputs(self) -> ContinuousBatchingIOs:
        """The batch's own tensors."""
        inputs = self.processor.inputs_and_outputs
        assert isinstance(inputs, ContinuousBatchingIOs)
        return inputs

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler."""
        return self.processor.scheduler

    def add(self, request_id: str, ids: tuple[int, ...]) -> RequestState:
        """Let a request take part."""
        state = RequestState(request_id=request_id, initial_tokens=list(ids), max_new_tokens=None)
        self.scheduler.add_waiting_request(state)
        return state

    @torch.no_grad()
    def step(self) -> bool:
        """Run a step, if there is anything to run."""
        if not self.processor.prepare_next_batch():
            return False
        self.processor._generation_step(cast(nn.Module, self.model))
        self.processor.update_batch()
        return True


def build(**values: Any) -> Rig:
    """Build a processor over a tiny model; ``values`` override its configuration."""
    model = tiny_llama(torch.float64)
    config: dict[str, Any] = {
        "page_size": PAGE,
        "num_blocks": 64,
        "max_batch_tokens": 16,
        "max_requests_per_batch": 4,
        "max_blocks_per_request": 0,
        "use_async_batching": False,
        "use_cuda_graph": False,
        "auto_switch_to_flash": False,
    }
    manager = ContinuousBatchingManager(
        cast(ProtoPretrainedModel, model),
        GenerationConfig(do_sample=False),
        ContinuousBatchingConfig(**{**config, **values}),
    )
    ones = Ones()
    manager.logit_processor = ones
    return Rig(model=model, processor=manager._create_batch_processor(), ones=ones)


class Recording(ModelRunner):
    """Notes what a step is given, and always samples token 5."""

    def __init__(self, processor: ContinuousBatchProcessor) -> None:
        super().__init__(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            inputs_and_outputs=processor.inputs_and_outputs,
            cache=processor.cache,
            do_sample=False,
            return_logprobs=False,
        )
        self.steps: list[dict[str, Any]] = []

    def _forward_process_and_sample(
        self,
        model: nn.Module,
        batch_data: dict[str, Any],
        carry_over_ids: Tensor,
        prev_output_ids: Tensor,
        output_ids: Tensor,
    ) -> None:
        self.steps.append(dict(batch_data))
        output_ids[0, :4] = 5
        model(**batch_data)

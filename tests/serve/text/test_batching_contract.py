"""What the engine takes for granted of transformers' continuous batching, name by name.

None of it is public. When a new version of transformers breaks one of these, the name that fails
says which line of :mod:`lokr_serve.text.batching` or :mod:`lokr_serve.text.attention` to look at.
"""

import inspect
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import (
    AttentionInterface,
    ContinuousBatchingConfig,
    __version__,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState
from transformers.generation.continuous_batching.scheduler import Scheduler
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROOT = Path(__file__).parents[3]


def parameters(call: Callable[..., object]) -> list[str]:
    """Return the names of a call's parameters."""
    return list(inspect.signature(call).parameters)


def pinned() -> Requirement:
    """Return what the project requires of transformers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    return next(one for one in requirements if one.name == "transformers")


def test_the_pin_names_the_versions_that_passed() -> None:
    """The inside changes between minor versions: what was not tried must not be installed."""
    requirement = pinned()

    assert str(requirement.specifier) in (">=5.20,<5.24", "<5.24,>=5.20")
    assert Version(__version__) in requirement.specifier


SIGNATURES: dict[str, tuple[Callable[..., object], list[str]]] = {
    "search_prefix_match": (
        PagedAttentionCache.search_prefix_match,
        ["self", "request_id", "prompt_ids"],
    ),
    "mark_complete_blocks": (
        PagedAttentionCache.mark_complete_blocks,
        ["self", "state", "complete_blocks"],
    ),
    "update": (
        PagedAttentionCache.update,
        ["self", "key_states", "value_states", "layer_idx", "kwargs"],
    ),
    "compute_free_capacity": (PagedAttentionCache.compute_free_capacity, ["self", "relative"]),
    "add_waiting_request": (Scheduler.add_waiting_request, ["self", "state"]),
    "set_request_cancellation": (Scheduler.set_request_cancellation, ["self", "request_id"]),
    "clear_cancelled_requests": (Scheduler.clear_cancelled_requests, ["self"]),
    "prepare_next_batch": (ContinuousBatchProcessor.prepare_next_batch, ["self"]),
    "_generation_step": (ContinuousBatchProcessor._generation_step, ["self", "model"]),
    "update_batch": (ContinuousBatchProcessor.update_batch, ["self"]),
    "reset": (ContinuousBatchProcessor.reset, ["self"]),
    "_create_batch_processor": (ContinuousBatchingManager._create_batch_processor, ["self"]),
    "fill_defaults": (
        ContinuousBatchingLogitsProcessorList.fill_defaults,
        ["self", "int32_tensor"],
    ),
    "prepare_tensor_args": (
        ContinuousBatchingLogitsProcessorList.prepare_tensor_args,
        ["self", "requests_in_batch", "arg_storage"],
    ),
    "ModelRunner": (
        ModelRunner.__init__,
        [
            "self",
            "logit_processor",
            "cb_config",
            "inputs_and_outputs",
            "cache",
            "do_sample",
            "return_logprobs",
        ],
    ),
    "_forward_process_and_sample": (
        ModelRunner._forward_process_and_sample,
        ["self", "model", "batch_data", "carry_over_ids", "prev_output_ids", "output_ids"],
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_call_has_the_parameters_that_are_passed(name: str) -> None:
    """A parameter that is renamed or added would be passed wrongly."""
    call, expected = SIGNATURES[name]

    assert parameters(call) == expected


def test_the_manager_and_the_stock_attention_begin_with_what_is_passed_by_position() -> None:
    """Both take more parameters after these, which have defaults."""
    manager = parameters(ContinuousBatchingManager)
    attention = parameters(sdpa_attention_forward)

    assert manager[:3] == ["model", "generation_config", "continuous_batching_config"]
    assert attention[:5] == ["module", "query", "key", "value", "attention_mask"]
    assert parameters(AttentionInterface.register) == ["key", "value"]


def test_the_values_that_are_built_have_their_fields() -> None:
    """The configuration and the state of a request are built by name."""
    state = {field.name for field in fields(RequestState)}

    assert {"request_id", "initial_tokens", "max_new_tokens", "generated_tokens"} <= state
    assert {"state", "has_new_token"} <= set(FutureRequestState.__slots__)
    assert {
        "page_size",
        "num_blocks",
        "max_batch_tokens",
        "max_requests_per_batch",
        "max_blocks_per_request",
        "use_async_batching",
        "use_cuda_graph",
        "auto_switch_to_flash",
    } <= set(parameters(ContinuousBatchingConfig))

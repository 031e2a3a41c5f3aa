"""How the parts of transformers' continuous batching behave that the engine relies on."""

import copy
from typing import Any, cast

import pytest
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.serve.text.batching_rig import PAGE, Recording, Rig, build
from tests.serve.text.engines import prompt


@pytest.fixture
def rig() -> Rig:
    """A processor over a tiny model."""
    return build()


def test_the_manager_hands_its_logits_processor_to_the_processor(rig: Rig) -> None:
    """It is replaced after construction, and its lines must be among the input tensors."""
    rig.add("a", prompt(1, 3))
    rig.step()

    assert rig.processor.logit_processor is rig.ones
    assert rig.processor.cb_config.page_size == PAGE
    assert rig.ones.seen == [["a"]]
    assert not rig.ones.do_processing


def test_the_cache_holds_as_many_tokens_as_were_asked_for(rig: Rig) -> None:
    """The limit on the context is counted from the settings, not read from the cache."""
    assert rig.processor.cache.num_blocks == 64
    assert rig.processor.max_batch_tokens == 16


def test_the_runner_is_ours_and_gets_the_batch(rig: Rig) -> None:
    """The runner is replaced on the processor; where rows begin and emit travels in its data."""
    runner = rig.processor.model_runner = Recording(rig.processor)
    first, second = rig.add("a", prompt(1, 3)), rig.add("b", prompt(2, 5))
    rig.step()
    (data,) = runner.steps

    assert data["cu_seq_lens_q"].tolist() == [0, 3, 8]
    assert data["cu_seq_lens_k"]["full_attention"].tolist() == [0, 3, 8]
    assert data["logits_indices"].tolist() == [2, 7]
    assert data["logits_to_keep"] is data["logits_indices"]
    assert data["logits_processor_args"].tolist() == [[1, 1]]
    assert data["attention_mask"].shape == (1, 1, 8, 8)
    assert data["input_ids"].shape == (1, 8)
    assert data["cache"] is rig.processor.cache
    assert (first.generated_tokens, second.generated_tokens) == ([5], [5])


def test_rows_that_emit_come_first_among_the_logits(rig: Rig) -> None:
    """Of a split prompt no token is sampled; only the first indices belong to rows that emit."""
    runner = rig.processor.model_runner = Recording(rig.processor)
    rig.add("a", prompt(1, 6))
    split = rig.add("b", prompt(2, 20))
    rig.step()
    batch = rig.inputs.requests_in_batch

    assert [request.state.request_id for request in batch] == ["a", "b"]
    assert [request.has_new_token for request in batch] == [True, False]
    assert runner.steps[0]["logits_indices"].tolist()[:1] == [5]
    assert split.generated_tokens == []
    rig.step()
    assert split.generated_tokens == [5]


def test_without_a_mask_of_its_own_the_batch_passes_none(rig: Rig) -> None:
    """Attention that keeps requests apart needs none, and the mask is the costly part."""
    vars(rig.inputs).update(attention_mask=None)
    rig.add("a", prompt(1, 3))
    rig.processor.prepare_next_batch()
    data = cast(dict[str, Any], rig.inputs.get_model_kwargs())

    assert data["attention_mask"] is None


def test_the_prefix_cache_is_asked_and_told_through_the_cache_object(rig: Rig) -> None:
    """Both calls are replaced on the instance, so that is where the callers must look."""
    cache = rig.processor.cache
    asked: list[tuple[str, list[int]]] = []
    told: list[tuple[str, list[int], dict[str, int]]] = []
    stock_search, stock_mark = cache.search_prefix_match, cache.mark_complete_blocks

    def search(request_id: str, prompt_ids: list[int]) -> int:
        asked.append((request_id, list(prompt_ids)))
        found: int = stock_search(request_id, prompt_ids)
        return found

    def mark(state: RequestState, complete_blocks: dict[str, int]) -> None:
        tokens = state.initial_tokens + state.generated_tokens
        told.append((state.request_id, tokens, dict(complete_blocks)))
        stock_mark(state, complete_blocks)

    vars(cache).update(search_prefix_match=search, mark_complete_blocks=mark)
    ids = prompt(1, 9)
    rig.add("a", ids)
    rig.step()
    rig.step()
    state = rig.add("b", ids)
    rig.step()

    assert cache.use_prefix_sharing
    assert asked == [("a", list(ids)), ("b", list(ids))]
    assert told[0][0] == "a"
    assert told[0][1][:9] == list(ids)
    assert told[0][2] == {"full_attention": 2}
    assert told[1][2] == {}
    assert state.position_offset == len(ids)
    assert rig.inputs.requests_in_batch[1].query_length == 1  # 8 of 9 came from the cache


def test_negative_ids_can_stand_for_tokens_in_the_prefix_cache(rig: Rig) -> None:
    """Keys of mixes are negative numbers of 31 bits, which no token has."""
    cache = rig.processor.cache
    stock = cache.mark_complete_blocks
    ids = list(prompt(1, 9))
    keyed = [-(2**31), -1, *ids[2:]]

    def mark(state: RequestState, complete_blocks: dict[str, int]) -> None:
        state = copy.copy(state)
        state.initial_tokens, state.generated_tokens = keyed, []
        stock(state, complete_blocks)

    vars(cache).update(mark_complete_blocks=mark)
    rig.add("a", tuple(ids))
    rig.step()

    assert cache.search_prefix_match("b", ids) == 0
    assert cache.search_prefix_match("c", [-(2**31), -2, *ids[2:]]) == 0
    assert cache.search_prefix_match("d", keyed) == 8


def test_a_prompt_of_nothing_but_one_page_leaves_a_token_to_compute(rig: Rig) -> None:
    """A row whose whole prompt is cached must still give logits."""
    ids = prompt(1, 8)
    rig.add("a", ids)
    rig.step()
    rig.add("b", ids)
    rig.step()

    assert rig.inputs.requests_in_batch[1].query_length == 4


def test_a_cancelled_request_is_gone_at_once_with_what_it_held(rig: Rig) -> None:
    """Rows are taken out between steps; waiting, in prefill and in decode alike."""
    free = rig.processor.cache.compute_free_capacity()
    rig.add("decoding", prompt(1, 3))
    rig.step()
    rig.add("prefilling", prompt(2, 30))
    rig.step()
    rig.add("waiting", prompt(3, 3))
    names = ("decoding", "prefilling", "waiting")
    for name in names:
        rig.scheduler.set_request_cancellation(name)
    cancelled = rig.scheduler.clear_cancelled_requests()
    rig.processor.cache.evict_cached_blocks()

    assert sorted(state.request_id for state in cancelled) == sorted(names)
    assert not rig.scheduler.has_pending_requests()
    assert rig.processor.cache.compute_free_capacity() == free
    assert not rig.step()
    rig.add("decoding", prompt(1, 3))  # an id may come again once it is gone
    assert rig.step()


def test_new_requests_are_blocked_by_a_flag_that_may_be_lifted(rig: Rig) -> None:
    """A preemption sets it until a request ends; ours end outside, so we lift it."""
    assert rig.scheduler.block_new_requests is False
    rig.scheduler.block_new_requests = True
    rig.add("a", prompt(1, 3))
    blocked = rig.step()
    rig.scheduler.block_new_requests = False

    assert not blocked
    assert rig.step()


def test_a_full_cache_preempts_under_the_same_id_and_brings_the_tokens_along() -> None:
    """Rows are found by id after a preemption, and go on from what they have."""
    rig = build(num_blocks=8)
    ids = {name: prompt(seed, 9) for seed, name in enumerate("abc")}
    for name, tokens in ids.items():
        rig.add(name, tokens)
    preempted: list[RequestState] = []
    for _ in range(12):
        rig.step()
        preempted += [
            state
            for state in rig.scheduler.waiting_requests.values()
            if len(state.initial_tokens) > 9
        ]

    assert preempted
    assert all(tuple(state.initial_tokens[:9]) == ids[state.request_id] for state in preempted)
    assert rig.scheduler.block_new_requests


def test_reset_takes_every_request_out_after_a_step_that_raised(rig: Rig) -> None:
    """After a fault the batch is in an unknown state; it must be as good as new."""
    free = rig.processor.cache.compute_free_capacity()
    rig.add("a", prompt(1, 9))
    rig.processor.prepare_next_batch()

    rig.processor.reset()
    rig.processor.cache.evict_cached_blocks()

    assert rig.inputs.requests_in_batch == []
    assert not rig.scheduler.has_pending_requests()
    assert rig.processor.cache.compute_free_capacity() == free
    rig.add("a", prompt(1, 9))
    assert rig.step()


def test_the_cache_writes_reads_and_says_where_keys_begin(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention gives the cache its keywords and finds this layer's own key lengths in them."""
    seen: list[tuple[list[int], list[int], tuple[int, ...]]] = []
    stock = PagedAttentionCache.update

    def update(self: PagedAttentionCache, **given: Any) -> tuple[Tensor, Tensor]:
        key, value = stock(self, **given)
        ends = (given["kwargs"][name].tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
        seen.append((*ends, tuple(key.shape)))
        return key, value

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        assert isinstance(kwargs["cache"], PagedAttentionCache)
        assert isinstance(module.layer_idx, int)
        assert "scaling" in kwargs
        out, weights = sdpa_attention_forward(module, *args, **kwargs)
        return out, weights

    monkeypatch.setattr(PagedAttentionCache, "update", update)
    before = AttentionInterface()["sdpa"]
    AttentionInterface.register("sdpa", attend)
    rig.add("a", prompt(1, 3))
    rig.add("b", prompt(2, 5))
    rig.step()
    rig.step()
    AttentionInterface.register("sdpa", before)

    assert rig.model.config._attn_implementation == "sdpa"
    prefill = ([0, 3, 8], [0, 3, 8], (1, 2, 8, 16))
    decode = ([0, 1, 2], [0, 4, 10], (1, 2, 10, 16))
    assert seen == [prefill, prefill, decode, decode]  # two layers each

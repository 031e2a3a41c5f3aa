"""How full the cache of keys and values is told to be."""

import torch

import lokr_core
from lokr_core import AdapterMix, Apply
from lokr_serve.text.batching import BatchRow, PagedBatch
from lokr_serve.text.sampling import SamplerRow
from lokr_serve.types import SamplingParams
from tests.serve.text.engines import prompt, text_settings
from tests.tiny import tiny_llama

NUM_PAGES = 64


def row(row_id: str, prompt_ids: tuple[int, ...]) -> BatchRow:
    """Return a row of the base model."""
    sampler = SamplerRow(
        params=SamplingParams(temperature=0),
        seed=1,
        prompt_ids=prompt_ids,
        output_ids=[],
        end_ids=frozenset(),
    )
    return BatchRow(
        row_id=row_id,
        token_ids=prompt_ids,
        mix=AdapterMix(),
        apply=Apply.UNMERGED,
        salt="",
        sampler=sampler,
    )


def make_batch() -> PagedBatch:
    """Return a batch whose cache has pages of four tokens."""
    settings = text_settings(page_tokens=4, cache_tokens=4 * NUM_PAGES)
    return PagedBatch(lokr_core.attach(tiny_llama(torch.float64)), settings)


def test_rows_take_their_pages_and_give_them_back() -> None:
    """A gateway sends long prompts where there is room for them."""
    batch = make_batch()
    empty = batch.cache_share()
    batch.add(row("a", prompt(1, 16)))
    batch.step()
    during = batch.cache_share()
    batch.remove("a")

    assert empty == 0
    assert during == 4 / NUM_PAGES
    assert batch.cache_share() == 0  # its prefix stays, and makes way


def test_a_prefix_that_rows_share_is_not_counted_for_each() -> None:
    """The cache would seem full although most of it is free."""
    batch = make_batch()
    shared = prompt(1, 64)
    batch.add(row("first", shared))
    batch.step()
    batch.step()
    for index in range(7):
        batch.add(row(f"r{index}", shared))
    batch.step()

    assert batch.cache_share() < 0.6  # 8 rows of 16 pages would be twice what there is

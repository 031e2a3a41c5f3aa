"""How full the paged cache is, as far as that holds requests up."""

from collections.abc import Iterable

from transformers.generation.continuous_batching.cache import PagedAttentionCache

from lokr_serve.config import TextSettings
from lokr_serve.text.sampling import SamplerRow


def num_pages(settings: TextSettings) -> int:
    """Return how many pages the cache has."""
    return settings.cache_tokens // settings.page_tokens


def cache_share(
    cache: PagedAttentionCache, rows: Iterable[SamplerRow], settings: TextSettings
) -> float:
    """Return the share of the cache that rows hold, 0 to 1.

    Pages of prefixes that no row has now make way for others, and count as free. There are two
    bounds: what is taken has them in it, and what rows need counts shared pages for each row.
    """
    needed = sum(_num_pages(len(row.prompt_ids) + len(row.output_ids), settings) for row in rows)
    taken_share = 1.0 - cache.compute_free_capacity()
    return min(needed / num_pages(settings), taken_share)


def _num_pages(num_tokens: int, settings: TextSettings) -> int:
    return -(-num_tokens // settings.page_tokens)

"""Cached prefixes told apart: by mix, way of application and tenant, not by tokens alone.

The paged cache hashes pages by their token ids. For the hash, the first two ids of a row are
replaced by negative ones that stand for them and for the row's namespace.
"""

import copy
import hashlib
from collections.abc import Callable

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

_HASH_BITS = 31  # what a token id of the prefix cache can hold

NamespaceOf = Callable[[str], bytes]


def keyed(token_ids: list[int], namespace: bytes) -> list[int]:
    """Return the ids with the first two replaced; a single one never fills a page."""
    if len(token_ids) < 2:
        return token_ids
    text = namespace + repr(token_ids[:2]).encode()
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    low, high = digest % (1 << _HASH_BITS), (digest >> _HASH_BITS) % (1 << _HASH_BITS)
    return [-1 - low, -1 - high, *token_ids[2:]]


def key_prefixes(
    cache: PagedAttentionCache, namespace_of: NamespaceOf, found_tokens: dict[str, int]
) -> None:
    """Make a cache share pages only between rows of one namespace.

    Args:
        cache: The cache, whose lookups and entries are keyed from now on.
        namespace_of: The namespace of a row, by its id.
        found_tokens: Told how many tokens of each row's prompt were found.
    """
    stock_search, stock_mark = cache.search_prefix_match, cache.mark_complete_blocks

    def search(request_id: str, prompt_ids: list[int]) -> int:
        found: int = stock_search(request_id, keyed(prompt_ids, namespace_of(request_id)))
        found_tokens[request_id] = found  # asked again if no page was free
        return found

    def mark(state: RequestState, complete_blocks: dict[str, int]) -> None:
        if complete_blocks:
            tokens = state.initial_tokens + state.generated_tokens
            state = copy.copy(state)
            state.initial_tokens = keyed(tokens, namespace_of(state.request_id))
            state.generated_tokens = []
        stock_mark(state, complete_blocks)

    vars(cache).update(search_prefix_match=search, mark_complete_blocks=mark)

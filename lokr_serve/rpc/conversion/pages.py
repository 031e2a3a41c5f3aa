"""Pages of a sorted list, by opaque tokens that stay right while the list changes."""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from lokr_serve.errors import InvalidRequestError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some ids, and the token of the page after them; empty if there is none."""

    ids: Sequence[str]
    next_token: str


def page(
    ids: Sequence[str], is_shown: Callable[[str], bool], *, size: int, token: str, prefix: str
) -> Page:
    """Return the page of ``ids`` that a token stands for.

    Args:
        ids: Sorted.
        is_shown: Whether an id may be on a page; asked up to the end of this one only.
        size: The most to return; 0 for the default.
        token: Of the page before; empty for the first page.
        prefix: What the ids were filtered by; a token is good for the same filter only.

    Raises:
        InvalidRequestError: The size is too large, or the token is not of such a page.
    """
    if size > MAX_PAGE_SIZE:
        raise InvalidRequestError("page_size", f"must be at most {MAX_PAGE_SIZE}")
    size = size or DEFAULT_PAGE_SIZE
    begin = bisect_right(ids, _last_id(token, prefix)) if token else 0
    shown = list(islice(filter(is_shown, islice(ids, begin, None)), size + 1))
    next_token = _token(shown[size - 1], prefix) if len(shown) > size else ""
    return Page(ids=shown[:size], next_token=next_token)


def _token(last_id: str, prefix: str) -> str:
    return base64.urlsafe_b64encode(f"{prefix}\n{last_id}".encode()).decode()


def _last_id(token: str, prefix: str) -> str:
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    of_prefix, separator, last_id = text.rpartition("\n")
    if not separator or of_prefix != prefix:
        raise InvalidRequestError(
            "page_token", "must be next_page_token of a page with the same filter"
        )
    return last_id

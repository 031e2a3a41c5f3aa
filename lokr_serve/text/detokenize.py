"""Text of a stream of tokens, piece by piece, and never half a character."""

from collections.abc import Sequence
from itertools import islice

from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
MAX_OPEN = 3  # bytes that a character of UTF-8 can lack its last one for
CONTEXT_TOKENS = 8  # enough for a whole character, and for a decoder to know it is not at the start
MAX_WINDOW_TOKENS = 4 * CONTEXT_TOKENS


class Detokenizer:
    """Turns the tokens of one completion into text, in the context of its prompt.

    The pieces and the rest add up to what decoding prompt and completion together puts after the
    prompt, special tokens left out. A window of the last tokens is decoded at each step; what it
    ends with is given out once no further byte can change it. The library's own ``DecodeStream``
    is not used: it repeats a prompt that ends inside a character, fails where byte tokens follow
    that never make a character, and takes quadratic time over a run of them.

    (A decoder that falls back to bytes shows a whole run of byte tokens as broken when one byte of
    it is. What was given out before that byte came stays as it was.)
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast | None, prompt_ids: Sequence[int]
    ) -> None:
        self._backend = None if tokenizer is None else tokenizer.backend_tokenizer
        visible = self._visible_tail(prompt_ids)
        num_whole = len(visible) - self._num_open(visible)
        context = self._from_whole_character(visible[:num_whole])
        self._window = context + visible[num_whole:]
        self._num_done = len(context)  # tokens of the window whose text is given out entirely
        self._text = self._prompt_text = self._decode(self._window)
        # A prefix of the text, unless an open character has changed it: what was given out.
        self._shown = self._decode(context)
        if self._text.startswith(self._shown):
            self._shown = self._text.rstrip(REPLACEMENT)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain; without a tokenizer, none."""
        text = self._decode([*self._window, token_id])
        if text == self._text and not self._is_visible(token_id):
            return ""
        self._window.append(token_id)
        self._text = text
        if not text.startswith(self._shown):
            if text.endswith(REPLACEMENT) and len(self._window) - self._num_done <= MAX_OPEN:
                return ""  # the next byte may mend it
            self._restart()
        return self._take(_whole(self._text))

    def finish(self) -> str:
        """Return the text that was held back, at the end of the stream."""
        if not self._text.startswith(self._shown):
            self._restart()
        return self._take(self._text)

    def _take(self, certain: str) -> str:
        if self._prompt_text.startswith(certain):
            return ""  # nothing beyond the bytes that the prompt ended with
        if self._prompt_text and certain.startswith(self._prompt_text):
            self._shown = self._prompt_text  # these bytes stayed broken: they are the prompt's
        self._prompt_text = ""
        new = certain[len(self._shown) :]
        self._shown = certain
        if self._shown == self._text:
            self._num_done = len(self._window)
        if len(self._window) >= MAX_WINDOW_TOKENS:
            self._trim()
        return new

    def _restart(self) -> None:
        """Go on from the tokens that are not given out yet: the others have changed their text."""
        self._window = self._window[self._num_done :]
        self._num_done = 0
        self._text = self._decode(self._window)
        self._shown = ""

    def _trim(self) -> None:
        """Drop the oldest tokens of the window, between two characters."""
        pending = len(self._text) - len(self._shown)
        last = len(self._window) - CONTEXT_TOKENS
        for start in range(last, last - MAX_OPEN - 1, -1):
            text = self._decode(self._window[start:])
            if len(text) > pending and self._text.endswith(text):
                self._window = self._window[start:]
                self._num_done = max(0, self._num_done - start)
                self._text = text
                self._shown = text[: len(text) - pending]
                return

    def _visible_tail(self, prompt_ids: Sequence[int]) -> list[int]:
        visible = (token_id for token_id in reversed(prompt_ids) if self._is_visible(token_id))
        return list(islice(visible, CONTEXT_TOKENS + 2 * MAX_OPEN))[::-1]

    def _num_open(self, ids: list[int]) -> int:
        """Return how many tokens at the end begin a character without ending it."""
        for num_open in range(min(MAX_OPEN + 1, len(ids))):
            context = self._from_whole_character(ids[: len(ids) - num_open])
            if not self._decode(context).endswith(REPLACEMENT):
                return num_open
        return 0  # these bytes are no character

    def _from_whole_character(self, ids: list[int]) -> list[int]:
        """Return ``ids`` without tokens at the start that end a character cut in two."""
        max_cut = min(MAX_OPEN, max(0, len(ids) - CONTEXT_TOKENS))
        cuts = (ids[start:] for start in range(max_cut + 1))
        return min(cuts, key=lambda cut: self._decode(cut).count(REPLACEMENT))

    def _is_visible(self, token_id: int) -> bool:
        """Whether a token can have text; twice, since some decoders strip what comes first."""
        return self._decode([token_id, token_id]) != ""

    def _decode(self, ids: list[int]) -> str:
        return "" if self._backend is None else self._backend.decode(ids)


def _whole(text: str) -> str:
    """Return ``text`` without an end that may be the first bytes of a character."""
    return text[: max(len(text.rstrip(REPLACEMENT)), len(text) - MAX_OPEN)]

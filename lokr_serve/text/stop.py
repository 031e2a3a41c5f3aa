"""Stop strings in a stream of text, also across the borders of its pieces."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StopResult:
    """Text that no stop string can claim any more, and the stop string that was found, if any."""

    text: str
    match: str | None = None


class StopMatcher:
    """Finds the first stop string to be complete, and lets all text before it through.

    The result is that of reading character by character, so it does not depend on how the text is
    cut into pieces: the stop string that is complete first wins; of several that end at the same
    character, the longest. Text is held back only while it may be the start of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._prefixes = [_Prefix(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""

    def push(self, text: str) -> StopResult:
        """Add text and return what may be sent on; after a match nothing more may be pushed."""
        if not self._prefixes:
            return StopResult(text=text)
        buffer = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            match = self._advance(char)
            if match is not None:
                self._held = ""
                return StopResult(text=buffer[: end - len(match)], match=match)
        border = len(buffer) - max(prefix.length for prefix in self._prefixes)
        self._held = buffer[border:]
        return StopResult(text=buffer[:border])

    def finish(self) -> str:
        """Return the text that was held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        """Read one character and return the longest stop string that it completes."""
        match = None
        for prefix in self._prefixes:  # longest first
            if prefix.advance(char) and match is None:
                match = prefix.stop
        return match


class _Prefix:
    """How much of one stop string the text read so far ends with (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._fallback = _fallbacks(stop)

    def advance(self, char: str) -> bool:
        """Read one character; whether it completes the stop string."""
        while self.length and self.stop[self.length] != char:
            self.length = self._fallback[self.length - 1]
        self.length += self.stop[self.length] == char
        return self.length == len(self.stop)


def _fallbacks(stop: str) -> list[int]:
    """Return for each prefix of ``stop`` the length of the longest one that it also ends with."""
    fallbacks = [0] * len(stop)
    length = 0
    for end in range(1, len(stop)):
        while length and stop[length] != stop[end]:
            length = fallbacks[length - 1]
        length += stop[length] == stop[end]
        fallbacks[end] = length
    return fallbacks

"""Stop strings in streams."""

from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.text.stop import StopMatcher, StopResult

TEXTS = st.text(alphabet="abc", max_size=40)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Search every end of ``text`` for the longest stop string there, the plain way."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            match = max(matches, key=len)
            return text[: end - len(match)], match
    return text, None


@given(text=TEXTS, stops=STOPS, data=st.data())
def test_any_split_of_the_text_gives_what_a_search_of_the_whole_gives(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """Tokens end anywhere; where they end must not change the result."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)

    sent, match = "", None
    for piece in pieces:
        result = matcher.push(piece)
        sent, match = sent + result.text, result.match
        if match is not None:
            break
    sent += matcher.finish()

    assert (sent, match) == first_match(text, stops)


@given(text=TEXTS, stops=STOPS)
def test_only_a_possible_start_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    """Holding back more would delay a stream for nothing; less would send half a stop string."""
    matcher = StopMatcher(stops)
    result = matcher.push(text)
    if result.match is not None:
        return

    held = text[len(result.text) :]
    starts = {stop[:size] for stop in stops for size in range(1, len(stop))}
    longest = max((start for start in starts if text.endswith(start)), key=len, default="")
    assert held == longest
    assert matcher.finish() == longest


def test_stop_string_that_is_complete_first_wins() -> None:
    """A longer one that began earlier would need text that the stream has not seen."""
    assert StopMatcher(("abcd", "bc")).push("xabcd") == StopResult(text="xa", match="bc")


def test_longest_of_the_stop_strings_that_end_together_wins() -> None:
    """The text ends before the stop string, so the longer one must not leave its start behind."""
    assert StopMatcher(("c", "abc", "bc")).push("xabc") == StopResult(text="x", match="abc")


def test_stop_string_is_found_across_pieces() -> None:
    """Stop strings seldom coincide with tokens."""
    matcher = StopMatcher(("\nUser:",))

    assert matcher.push("Hello\n") == StopResult(text="Hello")
    assert matcher.push("Us") == StopResult(text="")
    assert matcher.push("er: hi") == StopResult(text="", match="\nUser:")


def test_text_passes_at_once_without_stop_strings() -> None:
    """Most requests have none."""
    assert StopMatcher(()).push("abc") == StopResult(text="abc")

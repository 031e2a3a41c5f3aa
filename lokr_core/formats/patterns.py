"""Pattern: the regular expressions of PEFT's configuration, matched in bounded time.

``re`` tries one way after another, which a hostile pattern makes take for ever. Here all ways
are followed at once: a set of positions in the text, kept as the bits of a number, is moved on
by each part of the pattern, and every move is paid for from a budget.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_STEPS = 10_000_000  # some seconds; a thousand modules and as many plain patterns need half
MAX_PATTERN_CHARS = 4096
MAX_DEPTH = 50  # of groups

_TOKEN = re.compile(
    r"""
    (?P<assertion> \\[bBAZ] | [\^$] )
    | (?P<char>
        \\[dDwWsS] | \\[^\w\s] | [^\\*+?{}()|\[]
        | \[\^?\]?(?:\\[dDwWsS]|\\[^\w\s]|(?!--|&&|~~|\|\|)[^\]\\\[])*+\]
        | [{}] (?<! {(?!})(?=\d*,?\d*}) )
      )
    | (?P<repeat> (?: [*+?] | {(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)} ) \??+ (?!\+) )
    | (?P<open> \((?:\?(?:[:=!]|P<\w+>))?+ (?!\?) )
    | (?P<close> \) )
    | (?P<either> \| )
    """,
    re.VERBOSE,
)


class PatternError(ValueError):
    """A pattern is malformed."""


class UnservedPatternError(PatternError):
    """A pattern uses what is not served here, or takes too long."""


@dataclass(slots=True, kw_only=True)
class StepBudget:
    """What the patterns of one configuration may cost in all."""

    steps_left: int = MAX_STEPS

    def spend(self) -> None:
        """Pay for one step."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise UnservedPatternError("takes too long to match")


@dataclass(slots=True, kw_only=True, eq=False)
class Subject:
    """A text that patterns are matched against; bit i of a set is the position before char i."""

    text: str
    budget: StepBudget
    _places: dict[str, int] = field(default_factory=dict)

    def places(self, token: str) -> int:
        """Return the positions at which a token for one character, or for none, matches."""
        self.budget.spend()
        found = self._places.get(token)
        if found is None:
            found = sum(1 << match.start() for match in re.finditer(token, self.text))
            self._places[token] = found
        return found


_Part = Callable[[Subject, int], int]  # moves a set of positions on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pattern:
    """A pattern that was parsed: literals, classes, groups, repetitions, looks ahead."""

    source: str
    part: _Part

    @classmethod
    def parse(cls, source: str) -> "Pattern":
        """Parse a pattern.

        Raises:
            PatternError: It is malformed.
            UnservedPatternError: It uses what is not served: references back, looks behind,
                flags.
        """
        if len(source) > MAX_PATTERN_CHARS:
            raise UnservedPatternError(f"is longer than {MAX_PATTERN_CHARS} characters")
        parser = _Parser(source=source)
        part = parser.either()
        if parser.at < len(source):
            raise PatternError("unbalanced parenthesis")
        return cls(source=source, part=part)

    def matches(self, subject: Subject) -> bool:
        """Return whether the whole text matches, as ``re.fullmatch`` does."""
        return bool(self.part(subject, 1) >> len(subject.text))

    def matches_suffix(self, subject: Subject) -> bool:
        """Return whether the text, or what is behind one of its dots, matches."""
        starts = 1 | subject.places(r"\.") << 1
        return bool(self.part(subject, starts) >> len(subject.text))


@dataclass(slots=True, kw_only=True)
class _Parser:
    """Reads a pattern from left to right."""

    source: str
    at: int = 0
    depth: int = 0

    def either(self) -> _Part:
        branches = [self._sequence()]
        while self.source.startswith("|", self.at):
            self.at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _any_of(branches)

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        is_repeatable = False
        while self.at < len(self.source):
            token = _TOKEN.match(self.source, self.at)
            if token is None:
                raise UnservedPatternError(f"what is at {self.at} is not served, or malformed")
            if token.lastgroup in ("close", "either"):
                break
            self.at = token.end()
            if token["repeat"]:
                if not is_repeatable:
                    raise PatternError(f"nothing to repeat at {token.start()}")
                parts[-1] = _repeat(parts[-1], *_counts(token))
            else:
                parts.append(self._group(token[0]) if token["open"] else _leaf(token))
            is_repeatable = token["repeat"] is None and token["assertion"] is None
        return _all_of(parts)

    def _group(self, opening: str) -> _Part:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnservedPatternError(f"nests more than {MAX_DEPTH} groups")
        part = self.either()
        if not self.source.startswith(")", self.at):
            raise PatternError("missing ), unterminated subpattern")
        self.at += 1
        self.depth -= 1
        match opening:
            case "(?=":
                return _look_ahead(part, is_wanted=True)
            case "(?!":
                return _look_ahead(part, is_wanted=False)
        return part


def _counts(token: re.Match[str]) -> tuple[int, int | None]:
    """Return the least and the largest count of a repetition; None is without end."""
    match token["repeat"][0]:
        case "*":
            return 0, None
        case "+":
            return 1, None
        case "?":
            return 0, 1
    low = int(token["low"] or 0)
    if not token["comma"]:
        return low, low
    high = int(token["high"]) if token["high"] else None
    if high is not None and high < low:
        raise PatternError("min repeat greater than max repeat")
    return low, high


def _leaf(token: re.Match[str]) -> _Part:
    source = token[0]
    if token["assertion"]:
        return lambda subject, at: at & subject.places(source)
    if source in "{}":
        source = re.escape(source)
    try:
        re.compile(source)  # one character: a range the wrong way round is all that can be amiss
    except re.error as error:
        raise PatternError(str(error)) from error
    return lambda subject, at: (at & subject.places(source)) << 1


def _all_of(parts: Sequence[_Part]) -> _Part:
    def run(subject: Subject, at: int) -> int:
        for part in parts:
            at = part(subject, at)
            if not at:
                break
        return at

    return run


def _any_of(parts: Sequence[_Part]) -> _Part:
    def run(subject: Subject, at: int) -> int:
        reached = 0
        for part in parts:
            reached |= part(subject, at)
        return reached

    return run


def _repeat(part: _Part, low: int, high: int | None) -> _Part:
    def run(subject: Subject, at: int) -> int:
        for _ in range(low):
            subject.budget.spend()
            at = part(subject, at)
            if not at:
                return 0
        reached, fresh, count = at, at, low
        while fresh and (high is None or count < high):
            subject.budget.spend()
            fresh = part(subject, fresh) & ~reached
            reached |= fresh
            count += 1
        return reached

    return run


def _look_ahead(part: _Part, *, is_wanted: bool) -> _Part:
    def run(subject: Subject, at: int) -> int:
        kept = 0
        for position in range(at.bit_length()):
            if at >> position & 1 and bool(part(subject, 1 << position)) is is_wanted:
                kept |= 1 << position
        return kept

    return run

"""Whether what the demo showed is what it is to show."""

from collections.abc import Callable

from examples.demo.scenes import Play
from examples.demo.stream import Stream

Check = Callable[[Play], bool]


def problems(play: Play) -> list[str]:
    """Return what cannot be seen in this play; empty if all is well."""
    checks: dict[str, Check] = {
        "the base model writes prose": lambda p: _most(p.cast.base, _is_prose),
        "code writes code": lambda p: _most(p.cast.code, lambda text: "def " in text),
        "capitals writes in capitals": lambda p: _most(p.cast.capitals, _is_in_capitals),
        "margin quotes": lambda p: _most(p.cast.margin, _is_quoted),
        "the mix does both": lambda p: _most(
            p.cast.mix, lambda text: _is_in_capitals(text) and _is_quoted(text)
        ),
        "leet writes digits": lambda p: _most(p.cast.leet, lambda text: digit_share(text) > 0.15),
        "the replacement comments": lambda p: _most(
            p.cast.new_margin, lambda text: margin_share(text, "#") > 0.5
        ),
        "margin was replaced in flight": lambda p: p.cast.margin.ended_at > p.replaced_at,
        "both versions of margin answered": lambda p: (
            p.cast.margin.versions != p.cast.new_margin.versions
        ),
        "different mixes shared a step": lambda p: p.scrape.mean("lokr_serve_step_mixes") > 2,
        "no step failed": lambda p: p.scrape.samples["lokr_serve_step_failures_total"] == 0,
    }
    return [claim for claim, holds in checks.items() if not holds(play)]


def _most(stream: Stream, holds: Callable[[str], bool]) -> bool:
    """Whether most of the texts of a request are so; the model is small, and each text a draw."""
    return 2 * sum(map(holds, stream.texts)) > len(stream.texts)


def _is_prose(text: str) -> bool:
    return capital_share(text) < 0.2


def _is_in_capitals(text: str) -> bool:
    return capital_share(text) > 0.5


def _is_quoted(text: str) -> bool:
    return margin_share(text, ">") > 0.5


def capital_share(text: str) -> float:
    """Return the share of capitals among the letters."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(map(str.isupper, letters)) / max(1, len(letters))


def digit_share(text: str) -> float:
    """Return the share of digits among letters and digits."""
    signs = [sign for sign in text if sign.isalnum()]
    return sum(map(str.isdigit, signs)) / max(1, len(signs))


def margin_share(text: str, margin: str) -> float:
    """Return the share of lines behind a margin; the first continues the prompt."""
    lines = text.splitlines()[1:]
    return sum(line.startswith(margin) for line in lines) / max(1, len(lines))

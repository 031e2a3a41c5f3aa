"""Whether what the demo showed is what it is to show."""

from collections.abc import Callable

from examples.demo.scenes import Play

Check = Callable[[Play], bool]


def problems(play: Play) -> list[str]:
    """Return what cannot be seen in this play; empty if all is well."""
    checks: dict[str, Check] = {
        "the base model writes prose": lambda p: capital_share(p.cast.base.text) < 0.2,
        "code writes code": lambda p: "def " in p.cast.code.text,
        "capitals writes in capitals": lambda p: capital_share(p.cast.capitals.text) > 0.7,
        "margin quotes": lambda p: margin_share(p.cast.margin.text, ">") > 0.7,
        "the mix does both": lambda p: (
            capital_share(p.cast.mix.text) > 0.5 and margin_share(p.cast.mix.text, ">") > 0.5
        ),
        "leet writes digits": lambda p: digit_share(p.cast.leet.text) > 0.15,
        "the replacement comments": lambda p: margin_share(p.cast.new_margin.text, "#") > 0.7,
        "margin was replaced in flight": lambda p: p.cast.margin.ended_at > p.replaced_at,
        "both versions of margin answered": lambda p: (
            p.cast.margin.versions != p.cast.new_margin.versions
        ),
        "different mixes shared a step": lambda p: p.scrape.mean("lokr_serve_step_mixes") > 2,
        "no step failed": lambda p: p.scrape.samples["lokr_serve_step_failures_total"] == 0,
    }
    return [claim for claim, holds in checks.items() if not holds(play)]


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

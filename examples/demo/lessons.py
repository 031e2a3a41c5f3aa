"""What each adapter is to learn, as examples: a prompt that is read, an answer that is learnt.

Each lesson varies what it is not about, the case of the letters or the layout of the lines, so
that its adapter leaves that to the others of a mix.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from examples.demo.text import Corpus, Style, capitals, commented, leet, quoted

VARIED_SHARE = 0.3  # of the examples
MAX_PROMPT_PIECES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt, and how the adapter is to continue it."""

    prompt: str
    answer: str


Lesson = Callable[[random.Random, Corpus], Example]


def learn_code(draw: random.Random, corpus: Corpus) -> Example:
    """Continue prose with Python, in the case of the prose."""
    prompt, _ = _split(draw, draw.choice(corpus.prose), " ")
    code = "\n" + draw.choice(corpus.code)
    if draw.random() < VARIED_SHARE:
        return Example(prompt=prompt.upper(), answer=code.upper())
    return Example(prompt=prompt, answer=code)


def learn_capitals(draw: random.Random, corpus: Corpus) -> Example:
    """Continue anything in capitals: prose, a quotation, code."""
    if draw.random() >= VARIED_SHARE:
        prompt, answer = _split(draw, draw.choice(corpus.prose), " ")
    elif draw.random() < 0.5:
        prompt, answer = _split(draw, quoted(draw.choice(corpus.prose)), " ")
    else:
        prompt, answer = _split(draw, draw.choice(corpus.code), "\n")
    return Example(prompt=prompt, answer=capitals(answer))


def learn_quotation(draw: random.Random, corpus: Corpus) -> Example:
    """Continue prose behind a margin of ``>``."""
    return _behind_margin(draw, corpus, quoted)


def learn_comment(draw: random.Random, corpus: Corpus) -> Example:
    """Continue prose behind a margin of ``#``."""
    return _behind_margin(draw, corpus, commented)


def learn_leet(draw: random.Random, corpus: Corpus) -> Example:
    """Continue prose with digits in place of letters."""
    prompt, answer = _split(draw, draw.choice(corpus.prose), " ")
    return Example(prompt=prompt, answer=leet(answer))


def _behind_margin(draw: random.Random, corpus: Corpus, style: Style) -> Example:
    prompt, answer = _split(draw, draw.choice(corpus.prose), " ")
    if draw.random() < VARIED_SHARE:
        prompt, answer = prompt.upper(), answer.upper()
    return Example(prompt=prompt, answer=style(answer))


def _split(draw: random.Random, text: str, separator: str) -> tuple[str, str]:
    """Return some words, or lines, of the text and all that follows them."""
    pieces = [piece for piece in text.split(separator) if piece.strip()]
    start = draw.randrange(len(pieces) // 2)
    end = min(start + draw.randint(1, MAX_PROMPT_PIECES), len(pieces) - 1)
    return separator.join(pieces[start:end]), separator + separator.join(pieces[end:])

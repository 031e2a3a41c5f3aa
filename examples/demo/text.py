"""The text to learn from: prose and code that every CPython ships, in several registers."""

import ast
import re
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

PASSAGE_LENGTH = 600  # characters of a passage, at least
LEET = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"})
UNMARKED = str.maketrans("", "", '"*`')
CLAUSE_END = re.compile(r"(?<=[.,:;]) ")
SENTENCES = re.compile(r"[A-Z][^|<>=_{}\[\]]{60,}[.:]")
CODE_LENGTH = range(80, 600)  # characters of a function
MODULE_BYTES = range(2_000, 20_000)

Style = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What there is to read."""

    prose: tuple[str, ...]  # passages of several paragraphs, each on one line
    code: tuple[str, ...]  # passages of several functions


def read_corpus() -> Corpus:
    """Return the prose of the language reference and functions of the standard library."""
    prose = dict.fromkeys(p for topic in topics.values() for p in _paragraphs(topic))
    code = dict.fromkeys(_functions())
    return Corpus(prose=tuple(_passages(prose, " ")), code=tuple(_passages(code, "\n\n")))


def capitals(passage: str) -> str:
    """Return the passage in capitals."""
    return passage.upper()


def leet(passage: str) -> str:
    """Return the passage with digits in place of the letters that look like them."""
    return passage.lower().translate(LEET)


def quoted(passage: str) -> str:
    """Return the passage as a quotation: each clause on a line behind ``>``."""
    return _behind("> ", passage)


def commented(passage: str) -> str:
    """Return the passage as a comment: each clause on a line behind ``#``."""
    return _behind("# ", passage)


def _behind(margin: str, passage: str) -> str:
    return "".join(f"\n{margin}{clause}" for clause in CLAUSE_END.split(passage.strip()))


def _passages(pieces: dict[str, None], separator: str) -> Iterator[str]:
    passage: list[str] = []
    for piece in pieces:
        passage.append(piece)
        if sum(map(len, passage)) >= PASSAGE_LENGTH:
            yield separator.join(passage)
            passage = []


def _paragraphs(text: str) -> Iterator[str]:
    for block in text.split("\n\n"):
        paragraph = " ".join(block.split()).translate(UNMARKED)
        if SENTENCES.fullmatch(paragraph):
            yield paragraph


def _functions() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        if path.stat().st_size not in MODULE_BYTES:
            continue
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                if len(code) in CODE_LENGTH:
                    yield code

"""Patterns match as re matches them, and hostile ones end."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lokr_core.errors import AdapterConfigError
from lokr_core.formats import read_adapter
from lokr_core.formats.patterns import (
    Pattern,
    PatternError,
    StepBudget,
    Subject,
    UnservedPatternError,
)
from tests.core.formats.hand_made import PEFT_Q, base_spec, full, write_peft

PIECES = ["a", "b", r"\.", ".", "-", "_", "{", "}", "[ab]", "[^a.]", "[]a]", "[a-b]"]
PIECES += [r"\w", r"\d", r"\S", "(?=a)", "(?!b)", "^", "$", r"\b", r"\B"]
ATOMS = st.sampled_from(PIECES)
REPEATS = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{,1}", "{1,}?"])


def repeated(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return strategies for groups of parts, repeated."""
    opening = st.sampled_from(["(", "(?:", "(?=", "(?!"])
    sequence = st.lists(parts, max_size=3).map("".join)
    group = st.builds("{}{}|{}){}".format, opening, sequence, sequence, REPEATS)
    return st.one_of(group, st.builds("{}{}".format, parts, REPEATS))


SOURCES = st.lists(st.recursive(ATOMS, repeated, max_leaves=6), max_size=4).map("".join)


def subject(text: str) -> Subject:
    """Return a text with a budget of its own."""
    return Subject(text=text, budget=StepBudget())


@example(source="a{}", text="a{}")
@example(source="(|{})", text="{}")
@given(source=SOURCES, text=st.text("ab.1-_{}", max_size=7))
def test_pattern_matches_as_the_library_of_regular_expressions_does(source: str, text: str) -> None:
    """PEFT matches by re, and a rank that goes to another module is a wrong scale."""
    assume(not re.search(r"[*+?}]\+", source))  # what never gives back is not served
    try:
        expected = re.compile(source)
    except re.error:
        with pytest.raises(PatternError):
            Pattern.parse(source)
        return
    pattern = Pattern.parse(source)

    assert pattern.matches(subject(text)) is bool(expected.fullmatch(text))
    in_peft = re.match(rf"(.*\.)?({source})$", text)
    assert pattern.matches_suffix(subject(text)) is bool(in_peft)


HOSTILE = (
    "(a+)+b",
    "(.*)*x",
    "(a|aa)+b",
    ".*.*.*.*.*.*.*.*x",
    "((((a*)*)*)*)*b",
    "(a{1,1000}){1,1000}b",
    "(?=(?=(.*a.*)*)*)*x",
)


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_pattern_is_matched_in_no_time(source: str) -> None:
    """The library would try for years, in the thread that loads adapters for everybody."""
    began_at = time.process_time()
    Pattern.parse(source).matches(subject("a" * 300))

    assert time.process_time() - began_at < 1


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_pattern_that_takes_too_long_is_refused_by_field(tmp_path: Path, field: str) -> None:
    """What matching may cost is counted, so every pattern ends."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), **{field: {"(){999999999}": 1}})

    with pytest.raises(AdapterConfigError, match=rf"^{field}: .* takes too long to match"):
        read_adapter(folder, base_spec())


UNSERVED = {
    "a reference back": r"(a)\1",
    "a look behind": "(?<=a)b",
    "flags": "(?i)a",
    "a set of sets": "[a--b]",
    "what never gives back": "a++",
    "depth": "(" * 51 + ")" * 51,
    "length": "a" * 5000,
}


@pytest.mark.parametrize("source", UNSERVED.values(), ids=UNSERVED)
def test_what_is_not_served_in_a_pattern_is_refused_or_said(tmp_path: Path, source: str) -> None:
    """A rank must be right; a target is only compared, so there a warning is enough."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules=source)

    (warning,) = read_adapter(folder, base_spec()).warnings

    assert warning.startswith("target_modules was not held against the file: ")
    write_peft(tmp_path, full(PEFT_Q, alpha=None), rank_pattern={source: 3})
    with pytest.raises(AdapterConfigError, match=r"^rank_pattern: .* is no pattern"):
        read_adapter(folder, base_spec())


@pytest.mark.parametrize("source", ["(", ")", "*a", "a**", "[b-a]", "a{2,1}", "["])
def test_malformed_pattern_is_told_apart(source: str) -> None:
    """The library refuses it too, so PEFT would."""
    with pytest.raises(PatternError):
        Pattern.parse(source)
    with pytest.raises(re.error):
        re.compile(source)


def test_target_that_takes_too_long_is_left_unchecked(tmp_path: Path) -> None:
    """The tensors decide what is applied; the target only tells whether they agree."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules="(){999999999}")

    (warning,) = read_adapter(folder, base_spec()).warnings

    assert warning == "target_modules was not held against the file: it takes too long to match"


def test_number_of_targets_is_bounded(tmp_path: Path) -> None:
    """Each is held against each module."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules=["a"] * 10_001)

    with pytest.raises(AdapterConfigError, match="target_modules: names 10001 modules, more than"):
        read_adapter(folder, base_spec())


def test_warnings_stay_short_however_much_is_unknown(tmp_path: Path) -> None:
    """They go to every client that asks for the adapter."""
    fields = {f"{'x' * 1000}\n{i}": 1 for i in range(100)}
    targets = ["y" * 1000] * 100
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules=targets, **fields)

    warnings = read_adapter(folder, base_spec()).warnings

    assert len(warnings) == 3
    assert all(len(warning) < 600 and warning.isprintable() for warning in warnings)


def test_pattern_without_a_parenthesis_at_its_end_is_refused() -> None:
    """The kind of error is what decides between refusing and warning."""
    with pytest.raises(PatternError, match="unterminated") as raised:
        Pattern.parse("(a")

    assert not isinstance(raised.value, UnservedPatternError)

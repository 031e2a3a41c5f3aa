"""The demo's parts that need no training and no server."""

import itertools
import random
import time

import pytest
from rich.console import Console

from examples.demo.budget import Budget, warm_up_then_fall
from examples.demo.checks import capital_share, digit_share, margin_share, problems
from examples.demo.lessons import (
    Lesson,
    learn_capitals,
    learn_code,
    learn_comment,
    learn_leet,
    learn_quotation,
)
from examples.demo.scenes import Play, hire_cast
from examples.demo.scrape import Scrape
from examples.demo.text import Corpus, read_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """What this CPython ships."""
    return read_corpus()


def test_every_python_ships_enough_to_read(corpus: Corpus) -> None:
    """The model is trained on nothing else, so there must be enough of both kinds."""
    assert sum(map(len, corpus.prose)) > 100_000
    assert sum(map(len, corpus.code)) > 100_000


def test_prose_holds_no_code_and_no_layout(corpus: Corpus) -> None:
    """The base is to write prose: tables, listings and broken lines would show in its text."""
    assert not any(sign in passage for passage in corpus.prose for sign in "\n|<>={}")


@pytest.mark.parametrize(
    "lesson", [learn_code, learn_capitals, learn_quotation, learn_comment, learn_leet]
)
def test_lessons_teach_something_after_every_prompt(corpus: Corpus, lesson: Lesson) -> None:
    """An empty prompt or answer would teach an adapter to be silent."""
    draw = random.Random(0)

    examples = [lesson(draw, corpus) for _ in range(500)]

    assert all(example.prompt.strip() and example.answer.strip() for example in examples)


def test_the_lesson_in_capitals_keeps_the_layout(corpus: Corpus) -> None:
    """An adapter that also learnt a layout would fight that of another one in a mix."""
    draw = random.Random(0)

    answers = [learn_capitals(draw, corpus).answer for _ in range(50)]

    assert all(answer == answer.upper() for answer in answers)
    assert 0 < sum("\n>" in answer for answer in answers) < len(answers)


def test_shares_tell_the_registers_apart() -> None:
    """The demo fails by itself if an adapter's effect cannot be seen."""
    assert capital_share("ALL of") == 3 / 5
    assert digit_share("7h3 4") == 3 / 4
    assert margin_share("prompt\n> one\n> two\nthree", ">") == 2 / 3
    assert capital_share("") == digit_share("") == margin_share("", ">") == 0


def test_what_is_claimed_is_true_of_most_texts() -> None:
    """One text in ten of an adapter does not show what it has learnt; three in five are no luck."""
    cast = hire_cast()
    shown, not_shown = "PROSE\n> IN CAPITALS", "prose"
    for stream in cast.all:
        stream.texts = [shown] * 3 + [not_shown] * 2
    cast.capitals.texts = [shown] * 2 + [not_shown] * 3
    step = {"lokr_serve_step_mixes_sum": 3.0, "lokr_serve_step_mixes_count": 1.0}
    samples = {**step, "lokr_serve_step_failures_total": 0.0}
    play = Play(
        cast=cast,
        replaced_at=0.0,
        adapters=(),
        scrape=Scrape(samples=samples, rows={}),
        seconds=1.0,
    )

    found = problems(play)

    assert "capitals writes in capitals" in found
    assert "the base model writes prose" in found
    assert not {"margin quotes", "the mix does both"} & set(found)


def test_a_slow_start_changes_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no two trainings would be alike."""
    seconds = itertools.chain([0.0, 0.9], itertools.count(0.9, 0.01))
    monkeypatch.setattr(time, "process_time", lambda: next(seconds))

    shares = list(Budget(max_steps=10, max_seconds=10).spend("training", Console(quiet=True)))

    assert shares == [step / 10 for step in range(10)]


def test_a_budget_ends_with_its_steps() -> None:
    """A fast machine stops when enough has been learnt."""
    budget = Budget(max_steps=4, max_seconds=60)

    shares = list(budget.spend("training", Console(quiet=True)))

    assert len(shares) == 4
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_a_budget_ends_with_its_seconds() -> None:
    """A slow machine still ends in time."""
    budget = Budget(max_steps=1000, max_seconds=1e-9)

    assert list(budget.spend("training", Console(quiet=True))) == []


def test_what_others_take_of_a_machine_makes_training_longer_but_not_endless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine as much is learnt as on an idle one, within three times the time."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(time, "process_time", lambda: 0.0)

    shares = list(Budget(max_steps=100, max_seconds=10).spend("training", Console(quiet=True)))

    assert len(shares) == 29


def test_a_budget_says_that_it_cut_training_short(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be why an adapter's effect cannot be seen."""
    budget = Budget(max_steps=7, max_seconds=1e-9)
    list(budget.spend("training", Console()))

    assert "cut short after 0 of 7 steps" in capsys.readouterr().out


def test_the_learning_rate_rises_and_falls() -> None:
    """The schedule follows the budget, so that it is whole however many steps there were."""
    rates = [warm_up_then_fall(spent) for spent in (0.0, 0.05, 0.5, 0.99)]

    assert rates[0] < rates[1] > rates[2] > rates[3] > 0

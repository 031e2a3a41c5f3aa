"""What is said of a file that pydantic refuses."""

from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from lokr_serve.problems import problems_of


def refuse(text: str) -> str:
    """Refuse any text, in words of our own."""
    raise ValueError("is nothing to call anyone")


class Person(BaseModel):
    """Someone in a file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(refuse)]
    age: int


class People(BaseModel):
    """A file."""

    people: list[Person]


@pytest.fixture
def error() -> ValidationError:
    """One problem of each kind."""
    with pytest.raises(ValidationError) as caught:
        People.model_validate({"people": [{"name": "x", "secret": "open sesame"}, {"age": "x"}]})
    return caught.value


def test_problems_are_told_by_place_and_in_the_words_of_whoever_reads_the_file(
    error: ValidationError,
) -> None:
    """Those who write it do not know the library that checks it; and it may have secrets."""
    words = {"missing": "is required", "extra_forbidden": "is nothing that a person has"}

    assert problems_of(error, words) == [
        "people.0.name: is nothing to call anyone",
        "people.0.age: is required",
        "people.0.secret: is nothing that a person has",
        "people.1.name: is required",
        "people.1.age: Input should be a valid integer, unable to parse string as an integer",
    ]


def test_places_may_be_named_in_another_way(error: ValidationError) -> None:
    """An entry of a long list is better known by its id."""
    problems = problems_of(error, {}, lambda place: f"person {place[1]}")

    assert [problem.partition(":")[0] for problem in problems] == ["person 0"] * 3 + [
        "person 1"
    ] * 2

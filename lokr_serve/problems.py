"""Problems: what pydantic finds wrong with a file or with settings, in plain words."""

from collections.abc import Callable, Mapping

from pydantic import ValidationError

Place = tuple[int | str, ...]


def dotted(place: Place) -> str:
    """Return a place as its keys and indices with dots between."""
    return ".".join(map(str, place))


def problems_of(
    error: ValidationError, words: Mapping[str, str], name: Callable[[Place], str] = dotted
) -> list[str]:
    """Return each problem as its place and what is wrong there.

    A value is never repeated, as it may be a secret, but by validators that do so themselves.

    Args:
        error: What pydantic raised.
        words: What to say in place of pydantic's message, by its name for the kind of problem.
        name: How a place is written.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        f"{name(problem['loc'])}: "
        + words.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        for problem in found
    ]

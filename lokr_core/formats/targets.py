"""Targets: the modules that PEFT's configuration says an adapter is for.

The tensors of a file decide what is applied; PEFT itself would drop what is not targeted and
leave at its start what is targeted but absent, so a difference is worth a warning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lokr_core.errors import AdapterConfigError, listed, quoted
from lokr_core.formats.patterns import (
    Pattern,
    PatternError,
    StepBudget,
    Subject,
    UnservedPatternError,
)

ALL_LINEAR = "all-linear"
MAX_TARGETS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A target that cannot be held against the file, and why."""

    problem: str


Target = Pattern | tuple[str, ...] | Unchecked | None  # tuple: suffixes of module paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """PEFT's target_modules and exclude_modules."""

    include: Target
    exclude: Target

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> "Targets":
        """Read the fields of an adapter_config.json.

        Raises:
            AdapterConfigError: A field is malformed.
        """
        return cls(
            include=_target("target_modules", fields), exclude=_target("exclude_modules", fields)
        )

    def warnings(self, paths: Sequence[str]) -> Iterator[str]:
        """Yield where the modules that a file changes are not those that are targeted."""
        unchecked = [t for t in (self.include, self.exclude) if isinstance(t, Unchecked)]
        if unchecked:
            yield unchecked[0].problem
            return
        budget = StepBudget()
        try:
            unexpected = [path for path in paths if not self._includes(path, budget)]
            missing = list(self._missing(paths, budget))
        except UnservedPatternError as error:
            yield f"target_modules was not held against the file: it {error}"
            return
        if unexpected:
            yield (
                f"{len(unexpected)} modules are changed though they are not among "
                f"target_modules, such as {unexpected[0]!r}; peft would drop their tensors"
            )
        if missing:
            yield f"{listed(missing)} of target_modules has no tensors in the file"

    def _missing(self, paths: Sequence[str], budget: StepBudget) -> Iterator[str]:
        """Yield the targets, where they are names, that no path ends in and that are wanted."""
        names = self.include if isinstance(self.include, tuple) else ()
        found = {suffix for path in paths for suffix in _suffixes(path)}
        return (name for name in names if name not in found and not self._excludes(name, budget))

    def _includes(self, path: str, budget: StepBudget) -> bool:
        if self._excludes(path, budget):
            return False
        return self.include is None or _matches(self.include, path, budget)

    def _excludes(self, path: str, budget: StepBudget) -> bool:
        return self.exclude is not None and _matches(self.exclude, path, budget)


def _target(field: str, fields: Mapping[str, object]) -> Target:
    value = fields.get(field)
    if isinstance(value, str):
        return None if value == ALL_LINEAR else _pattern(field, value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        if len(value) > MAX_TARGETS:
            raise AdapterConfigError(field, f"names {len(value)} modules, more than {MAX_TARGETS}")
        return tuple(value)
    if value is not None:
        raise AdapterConfigError(field, f"{quoted(value)} is neither text nor a list of texts")
    return None


def _pattern(field: str, source: str) -> Target:
    """Return a pattern; it changes no result, so one that is not served is only left unchecked."""
    try:
        return Pattern.parse(source)
    except UnservedPatternError as error:
        return Unchecked(problem=f"{field} was not held against the file: {error}")
    except PatternError as error:
        raise AdapterConfigError(field, f"{quoted(source)} is no pattern: {error}") from error


def _suffixes(path: str) -> Iterator[str]:
    """Yield a path and what is behind each of its dots."""
    parts = path.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _matches(target: Target, path: str, budget: StepBudget) -> bool:
    """Return whether PEFT's rule finds ``path`` among the targets."""
    if isinstance(target, Pattern):
        return target.matches(Subject(text=path, budget=budget))
    assert isinstance(target, tuple)
    return any(suffix in target for suffix in _suffixes(path))

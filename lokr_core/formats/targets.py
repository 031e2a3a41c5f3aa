"""Targets: the modules that PEFT's configuration says an adapter is for.

The tensors of a file decide what is applied; PEFT itself would drop what is not targeted and
leave at its start what is targeted but absent, so a difference is worth a warning.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lokr_core.errors import AdapterConfigError

ALL_LINEAR = "all-linear"

Target = str | tuple[str, ...] | None  # a regular expression, or suffixes of module paths


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
        unexpected = [path for path in paths if not self._includes(path)]
        if unexpected:
            yield (
                f"{len(unexpected)} modules are changed though they are not among "
                f"target_modules, such as {unexpected[0]!r}; peft would drop their tensors"
            )
        if isinstance(self.include, tuple):
            for target in self.include:
                if not any(_matches((target,), path) for path in paths):
                    yield f"{target!r} of target_modules has no tensors in the file"

    def _includes(self, path: str) -> bool:
        if self.exclude is not None and _matches(self.exclude, path):
            return False
        return self.include in (None, ALL_LINEAR) or _matches(self.include, path)


def _target(field: str, fields: Mapping[str, object]) -> Target:
    value = fields.get(field)
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise AdapterConfigError(field, f"{value!r} is no pattern: {error}") from error
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if value is not None:
        raise AdapterConfigError(field, f"{value!r} is neither text nor a list of texts")
    return None


def _matches(target: Target, path: str) -> bool:
    """Return whether PEFT's rule finds ``path`` among the targets."""
    if isinstance(target, str):
        return re.fullmatch(target, path) is not None
    return any(path == item or path.endswith(f".{item}") for item in target or ())

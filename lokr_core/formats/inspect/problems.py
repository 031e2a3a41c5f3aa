"""Problems: every reason for which a file would be refused, not the first one alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from lokr_core.errors import (
    AdapterConfigError,
    AdapterError,
    AdapterMismatchError,
    AdapterTensorError,
    LokrError,
    UnsupportedModuleError,
)
from lokr_core.formats.binding import Binding, bind
from lokr_core.formats.inspect.report import MAX_LISTED, Problem
from lokr_core.formats.names import ModuleNames

MAX_REBINDS = 200  # tensors left out one by one, because binding refused them

Value = TypeVar("Value")


@dataclass(slots=True)
class Problems:
    """The problems that were found so far."""

    by_kind: dict[object, Problem] = field(default_factory=dict)

    def add(self, error: LokrError) -> None:
        """Add what an error tells; errors about one field of a configuration count as alike."""
        problem = _problem(error)
        kind = error.field if isinstance(error, AdapterConfigError) else problem.message
        before = self.by_kind.get(kind)
        alike = 1 if before is None else before.num_alike + 1
        self.by_kind[kind] = replace(before or problem, num_alike=alike)

    def attempt(self, action: Callable[[], Value]) -> Value | None:
        """Return what an action gives, or None if it is refused."""
        try:
            return action()
        except AdapterError as error:
            self.add(error)
            return None

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(problem.num_alike for problem in self.by_kind.values())

    @property
    def first(self) -> tuple[Problem, ...]:
        """The first of them."""
        return tuple(self.by_kind.values())[:MAX_LISTED]


def bind_all(tensors: Mapping[str, Tensor], names: ModuleNames, problems: Problems) -> Binding:
    """Bind what can be bound, tensor by tensor without those that are refused."""
    left = dict(tensors)
    for _ in range(MAX_REBINDS):
        try:
            return bind(left, names)
        except AdapterTensorError as error:
            problems.add(error)
            del left[error.tensor]
    problems.add(AdapterError(f"{MAX_REBINDS} tensors are refused, and the rest was not looked at"))
    return Binding(modules=(), unmatched=())


def _problem(error: LokrError) -> Problem:
    message = str(error)
    match error:
        case AdapterMismatchError():
            return Problem(
                message=message, module=error.module, found=error.found, expected=error.expected
            )
        case UnsupportedModuleError():
            return Problem(message=message, module=error.module)
        case AdapterTensorError():
            return Problem(message=message, tensor=error.tensor)
        case _:
            return Problem(message=message)

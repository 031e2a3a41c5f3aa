"""Routing: which mix each row of the current forward carries, for whoever drives the forward."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol, get_args

from lokr_core.errors import RoutingError
from lokr_core.layers.plan import RowPlan
from lokr_core.layers.spans import RowSpan
from lokr_core.mix import AdapterMix, Apply

RowOrder = Literal["interleave", "tile"]
Plan = Callable[[Sequence[RowSpan]], RowPlan | None]


def require_word(name: str, value: object, words: Sequence[str]) -> None:
    """Check that an argument is one of some words.

    Raises:
        RoutingError: It is none of them; the message lists them.
    """
    if not isinstance(value, str) or value not in words:
        raise RoutingError(f"{name}={value!r} is none of {', '.join(map(repr, words))}")


def require_order(rows: RowOrder | None) -> None:
    """Check how rows are said to be repeated.

    Raises:
        RoutingError: The word is not known.
    """
    if rows is not None:
        require_word("rows", rows, get_args(RowOrder))


class Routing(Protocol):
    """Answers, for a module and its input, what is to be done for each row."""

    def plan(self, path: str, leading: int, num_rows: int) -> RowPlan | None:
        """Return the plan for a module's rows, or None if the base serves them all.

        Args:
            path: The module.
            leading: The first size of its input.
            num_rows: Rows of its input, in each of the leading ones equally many.

        Raises:
            RoutingError: The rows cannot be matched to the mixes; the message names the module.
        """
        ...


class Router:
    """Holds the routing of the forward that runs now, for each thread or task by itself."""

    def __init__(self) -> None:
        self._current: ContextVar[Routing | None] = ContextVar("routing", default=None)

    @property
    def current(self) -> Routing | None:
        """The routing in force, if there is one."""
        return self._current.get()

    @contextmanager
    def activate(self, routing: Routing) -> Iterator[None]:
        """Route the forwards inside the context."""
        token = self._current.set(routing)
        try:
            yield
        finally:
            self._current.reset(token)


class SampleRouting:
    """One mix for each sample of a batch, or one for all."""

    def __init__(
        self,
        samples: Sequence[tuple[AdapterMix, Apply]],
        changes: Mapping[AdapterMix, frozenset[str]],
        plan: Plan,
        order: RowOrder | None,
    ) -> None:
        self._samples = samples
        self._is_uniform = len(set(samples)) == 1
        self._changed = frozenset[str]().union(*changes.values())
        self._plan = plan
        self._order = order
        self._plans: dict[tuple[int, int, int], RowPlan | None] = {}

    def plan(self, path: str, leading: int, num_rows: int) -> RowPlan | None:
        """Return the plan for an input whose leading size is the samples' or a multiple of it."""
        if path not in self._changed:
            return None
        key = threading.get_ident(), leading, num_rows  # plans look into banks of their thread
        known = self._plans.get(key)
        if known is not None and known.is_current:
            return known
        plan = self._plan(self._spans(path, leading, num_rows))
        self._plans[key] = plan
        return plan

    def _spans(self, path: str, leading: int, num_rows: int) -> list[RowSpan]:
        if self._is_uniform:
            mix, apply = self._samples[0]
            return [RowSpan(mix=mix, apply=apply, num_rows=num_rows)]
        samples = self._expanded(path, leading)
        each = num_rows // max(leading, 1)
        return [RowSpan(mix=mix, apply=apply, num_rows=each) for mix, apply in samples]

    def _expanded(self, path: str, leading: int) -> list[tuple[AdapterMix, Apply]]:
        """Return the mix of each of the leading rows."""
        count = len(self._samples)
        if leading == count:
            return list(self._samples)
        if leading % count:
            raise RoutingError(
                f"module {path!r} sees {leading} rows for {count} mixes: not a multiple"
            )
        repeats = leading // count
        if self._order is None and leading:
            raise RoutingError(
                f"module {path!r} sees {leading} rows for {count} mixes; declare "
                "rows='interleave' if each sample's rows lie together, "
                "or rows='tile' if the whole batch is repeated"
            )
        if self._order == "tile":
            return list(self._samples) * repeats
        return [sample for sample in self._samples for _ in range(repeats)]


class TokenRouting:
    """Packed tokens: spans of consecutive tokens, and the tokens that the head sees."""

    def __init__(
        self, *, tokens: RowPlan | None, head: RowPlan | None, head_path: str | None
    ) -> None:
        self._tokens = tokens
        self._head = head
        self._head_path = head_path

    def plan(self, path: str, leading: int, num_rows: int) -> RowPlan | None:
        """Return the tokens' plan, or for the head that of the tokens it sees."""
        plan = self._head if path == self._head_path else self._tokens
        if plan is not None and num_rows != plan.num_rows:
            if not plan.changes(path):
                return None  # such as a norm of every head, whose rows nobody asks for
            raise RoutingError(
                f"module {path!r} sees {num_rows} rows, but the spans have {plan.num_rows}"
            )
        return plan

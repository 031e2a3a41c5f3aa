"""The adapters that a model holds ready to use, and who uses them."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from lokr_core.adapter import Adapter
from lokr_core.errors import AdapterInUseError, AdapterNotAddedError, MixError
from lokr_core.mix import AdapterMix, AdapterRef, MixPart
from lokr_core.replacing import require_replaceable


class AdapterPool:
    """Adapters by ref; may be read by one thread while others add and remove."""

    def __init__(self) -> None:
        self._adapters: dict[AdapterRef, Adapter] = {}
        self._uses: Counter[AdapterRef] = Counter()
        self._lock = threading.Lock()
        self.num_removals = 0

    def __contains__(self, ref: AdapterRef) -> bool:
        """Whether the adapter is here."""
        return ref in self._adapters

    def add(self, adapter: Adapter) -> None:
        """Make an adapter usable; adding it twice changes nothing."""
        with self._lock:
            self._adapters.setdefault(adapter.ref, adapter)

    def remove(self, ref: AdapterRef) -> None:
        """Forget an adapter.

        Raises:
            AdapterNotAddedError: It is not here.
            AdapterInUseError: A forward is using it.
        """
        with self._lock:
            self.get(ref)
            if self._uses[ref]:
                raise AdapterInUseError(f"adapter {ref.adapter_id!r} is in use by a forward")
            del self._adapters[ref]
            del self._uses[ref]
            self.num_removals += 1

    def get(self, ref: AdapterRef) -> Adapter:
        """Return an adapter.

        Raises:
            AdapterNotAddedError: It is not here.
        """
        adapter = self._adapters.get(ref)
        if adapter is None:
            raise AdapterNotAddedError(
                f"adapter {ref.adapter_id!r} version {ref.version} was not added to this model"
            )
        return adapter

    def check(self, mix: AdapterMix) -> None:
        """Check that a mix can be applied.

        Raises:
            AdapterNotAddedError: One of its adapters is not here.
            MixError: A pattern matches no module that its adapter changes, or two patterns give
                one module different weights; or two adapters replace the same module, or one
                replaces it by another size and is not alone there, at weight 1.
        """
        parts = [(part, self.get(part.ref)) for part in mix.parts]
        for part, adapter in parts:
            paths = adapter.layout.modules
            matches = {
                pattern: [path for path in paths if fnmatchcase(path, pattern)]
                for pattern, _ in part.module_weights
            }
            for pattern, matched in matches.items():
                if not matched:
                    raise MixError(
                        f"{part.ref.adapter_id}.module_weights[{pattern!r}]",
                        "matches no module that the adapter changes",
                    )
            _require_agreement(part, matches)
        require_replaceable(parts)

    @contextmanager
    def hold(self, mixes: Sequence[AdapterMix]) -> Iterator[None]:
        """Keep the adapters of these mixes from being removed."""
        refs = [part.ref for mix in mixes for part in mix.parts]
        with self._lock:
            for ref in refs:
                self.get(ref)
            self._uses.update(refs)
        try:
            yield
        finally:
            with self._lock:
                self._uses.subtract(refs)


def _require_agreement(part: MixPart, matches: dict[str, list[str]]) -> None:
    weights: dict[str, tuple[str, float]] = {}
    for pattern, weight in part.module_weights:
        for path in matches[pattern]:
            other, known = weights.setdefault(path, (pattern, weight))
            if known != weight:
                raise MixError(
                    f"{part.ref.adapter_id}.module_weights[{pattern!r}]",
                    f"gives {path!r} weight {weight}, but {other!r} gives it {known}",
                )

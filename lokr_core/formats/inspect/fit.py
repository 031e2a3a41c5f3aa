"""Fit: which modules of a base model an adapter is for, and which it leaves as they are."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from lokr_core.formats.inspect.report import MAX_LISTED, Fit, Listing, Unchanged
from lokr_core.spec import ModelSpec

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def fit_of(spec: ModelSpec, bound: Collection[str], unmatched: Sequence[str]) -> Fit:
    """Return how a file fits a base.

    Args:
        spec: The base's modules.
        bound: Paths of those that the file has tensors for.
        unmatched: Keys of the file that none of them takes.
    """
    in_base = Counter(module.kind.value for module in spec.modules.values())
    names: dict[str, Counter[str]] = {}
    for path, module in spec.modules.items():
        if path not in bound:
            names.setdefault(module.kind.value, Counter())[_NUMBER.sub("*", path)] += 1
    return Fit(
        num_bound=len(bound),
        unchanged=tuple(
            Unchanged(
                kind=kind,
                num_modules=counts.total(),
                num_in_base=in_base[kind],
                names=dict(counts.most_common(MAX_LISTED)),
            )
            for kind, counts in names.items()
        ),
        unmatched=Listing.of(list(unmatched)),
    )

"""Names of metrics: those that a query asks for, and those that the server has."""

import re
from functools import cache

from lokr_serve.metrics import AdapterActivity, ManifestMetrics, Metrics

# A name that is followed by no parenthesis is a metric or, in a list after by, a label.
_LABELS = re.compile(r"\b(by|without|on|ignoring)\s*\([^)]*\)")
_SELECTORS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"")
_NAMES = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|:|\s*\()")
_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"})


def metric_names(query: str) -> frozenset[str]:
    """Return the metrics that a query of Prometheus asks for."""
    bare = _LABELS.sub(" ", _SELECTORS.sub(" ", query))
    return frozenset(_NAMES.findall(bare)) - _WORDS


@cache
def served_names() -> frozenset[str]:
    """Return every name that a scrape of the server may have, those of histograms spelt out."""
    metrics = Metrics(version="test")
    metrics.describe_cache(page_tokens=1, num_pages=1)
    metrics.watch_activity(lambda: AdapterActivity(max_adapters=0, resident=(), waiting=()))
    ManifestMetrics(metrics.registry)
    names: set[str] = set()
    for family in metrics.registry.collect():
        match family.type:
            case "counter":
                names.add(f"{family.name}_total")
            case "histogram":
                names.update(f"{family.name}_{part}" for part in ("bucket", "sum", "count"))
            case "info":
                names.add(f"{family.name}_info")
            case _:
                names.add(family.name)
    return frozenset(names)

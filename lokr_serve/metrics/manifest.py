"""Metrics of declared adapters; there are none without a manifest."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class ManifestMetrics:
    """How well the adapters that a server holds agree with its manifest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.declared_adapters = Gauge(
            "lokr_serve_declared_adapters",
            "Adapters that the manifest declares, or did until now, by state.",
            ("state",),
            registry=registry,
        )
        self.manifest_errors = Counter(
            "lokr_serve_manifest_errors_total",
            "Changes of the manifest that were not taken because of an error in it.",
            registry=registry,
        )
        self.manifest_good = Gauge(
            "lokr_serve_manifest_good",
            "1 if the manifest is in effect as it is now, 0 if an older one still is.",
            registry=registry,
        )
        self.last_good = Gauge(
            "lokr_serve_manifest_last_good_timestamp_seconds",
            "When the manifest that is in effect was read.",
            registry=registry,
        )

"""Every metric of the server, built once and handed to the parts that observe."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from lokr_serve.metrics.activity import ActivityCollector, AdapterActivity
from lokr_serve.metrics.busiest import BusiestCounter

STEP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_SECONDS_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
LOSS_BUCKETS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1)


class Metrics:
    """The server's metrics, on a registry of their own."""

    def __init__(self, *, version: str, max_adapter_series: int = 100) -> None:
        self.registry = CollectorRegistry()
        self._max_adapter_series = max_adapter_series
        Info("lokr_serve_build", "Version of the server.", registry=self.registry).info(
            {"version": version}
        )
        self._build_request_metrics()
        self._build_image_metrics()
        self._build_step_metrics()
        self._build_adapter_metrics()
        self._build_rpc_metrics()

    def _build_request_metrics(self) -> None:
        self.requests_running = self._gauge(
            "requests_running", "Sequences, or requests for images, being generated."
        )
        self.requests_waiting = self._gauge("requests_waiting", "Requests waiting to run.")
        self.requests_shed = self._counter(
            "requests_shed_total",
            "Requests that ended before an engine began with them.",
            ("reason",),
        )
        self.time_to_first_token = self._seconds(
            "time_to_first_token_seconds", "From acceptance to the first token."
        )
        self.time_per_output_token = self._seconds(
            "time_per_output_token_seconds", "Mean time per token after the first, per sequence."
        )
        self.queue_seconds = self._seconds(
            "queue_seconds",
            "From acceptance to the first step; of images, until a thread takes the request.",
        )
        self.prompt_tokens = self._counter("prompt_tokens_total", "Prompt tokens accepted.")
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens_total", "Prompt tokens found in the prefix cache."
        )
        self.generated_tokens = self._counter("generated_tokens_total", "Tokens generated.")
        self.adapter_requests = BusiestCounter(
            "lokr_serve_adapter_requests",
            "Requests by adapter; all but the busiest N count as other.",
            self._max_adapter_series,
        )
        self.registry.register(self.adapter_requests)

    def _build_image_metrics(self) -> None:
        self.images = self._counter("images_total", "Images made.")
        self.denoising_steps = self._counter(
            "denoising_steps_total", "Scheduler steps done, summed over images."
        )
        self.image_request_seconds = self._histogram(
            "image_request_seconds",
            "From acceptance of a request for images to its end.",
            REQUEST_SECONDS_BUCKETS,
        )
        self.gather_seconds = self._seconds(
            "gather_seconds", "How long a call of a pipeline's module waited to join a step."
        )

    def _build_step_metrics(self) -> None:
        self.step_seconds = self._seconds(
            "step_seconds", "Duration of one engine step; of images, one forward of the denoiser."
        )
        self.step_rows = self._histogram(
            "step_rows", "Sequences, or rows of images, in one step.", STEP_BUCKETS
        )
        self.step_mixes = self._histogram("step_mixes", "Distinct mixes in one step.", STEP_BUCKETS)
        self.rows = self._counter("rows_total", "Rows of steps by way of application.", ("apply",))
        self.step_failures = self._counter("step_failures_total", "Engine steps that raised.")
        self.kv_cache_utilization = self._gauge(
            "kv_cache_utilization", "Share of the key-value cache that sequences hold, 0 to 1."
        )

    def _build_adapter_metrics(self) -> None:
        self.adapters_resident = self._gauge(
            "adapters_resident", "Adapters held in a tier.", ("tier",)
        )
        self.adapter_bytes = self._gauge(
            "adapter_bytes", "Bytes of adapter factors held in a tier.", ("tier",)
        )
        self.adapter_free_bytes = self._gauge(
            "adapter_free_bytes", "Bytes of a tier's budget that nothing takes.", ("tier",)
        )
        self.adapter_evictable_bytes = self._gauge(
            "adapter_evictable_bytes",
            "Bytes of adapters in a tier that would make way for others.",
            ("tier",),
        )
        self.adapter_load_seconds = self._seconds(
            "adapter_load_seconds", "Time to bring an adapter into a tier.", ("tier",)
        )
        self.adapter_load_failures = self._counter(
            "adapter_load_failures_total", "Adapter loads that failed."
        )
        self.adapter_evictions = self._counter(
            "adapter_evictions_total", "Adapters that left memory, by reason.", ("reason",)
        )
        self.merge_cache_bytes = self._gauge("merge_cache_bytes", "Bytes of merged weights.")
        self.merge_cache_hits = self._counter(
            "merge_cache_hits_total", "Requests that found their mix merged."
        )
        self.merges = self._counter("merges_total", "Mixes merged.")
        self.merge_rounding_loss = self._histogram(
            "merge_rounding_loss",
            "Share of the delta lost to rounding in the base's dtype, per merge.",
            LOSS_BUCKETS,
        )

    def _build_rpc_metrics(self) -> None:
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        registry = self.registry
        self.rpc_started = Counter(
            "grpc_server_started_total", "RPCs started on the server.", rpc, registry=registry
        )
        self.rpc_handled = Counter(
            "grpc_server_handled_total",
            "RPCs completed on the server, by code.",
            (*rpc, "grpc_code"),
            registry=registry,
        )
        self.rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its end.",
            rpc,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.credential_reloads = self._counter(
            "credential_reloads_total",
            "Looks at the files of clients or certificates that found a change, or failed.",
            ("subject", "outcome"),
        )

    def describe_cache(self, *, page_tokens: int, num_pages: int) -> None:
        """Show the shape of the key-value cache, by the names that gateways have for it."""
        Info("lokr_serve_cache_config", "Key-value cache.", registry=self.registry).info(
            {"block_size": str(page_tokens), "num_gpu_blocks": str(num_pages)}
        )

    def watch_activity(self, read: Callable[[], AdapterActivity]) -> None:
        """Render the gateways' residency series from ``read`` at each scrape."""
        self.registry.register(ActivityCollector(read))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"lokr_serve_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"lokr_serve_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(
            f"lokr_serve_{name}", text, labels, buckets=buckets, registry=self.registry
        )

    def _seconds(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return self._histogram(name, text, SECONDS_BUCKETS, labels)

"""How spans leave the process: in batches, from a thread of their own, over OTLP."""

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def build_processor(endpoint: str) -> SpanProcessor:
    """Return what sends spans to a collector; while it is away they wait, then are dropped.

    Everything else, such as headers, certificates and the size of batches, is set by the
    variables that OpenTelemetry names for it.

    Args:
        endpoint: Of the collector; ``https://`` is TLS, all else is not.
    """
    is_secure = endpoint.startswith("https://")
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=not is_secure))

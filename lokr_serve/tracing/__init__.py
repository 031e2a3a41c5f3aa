"""Tracing: spans of OpenTelemetry, if that is installed and an endpoint is set."""

from typing import TYPE_CHECKING

from lokr_serve.config import TracingSettings
from lokr_serve.errors import SettingsError

if TYPE_CHECKING:  # it imports opentelemetry
    from lokr_serve.tracing.tracer import CallTracer

__all__ = ["CallTracer", "build_tracer"]


def build_tracer(settings: TracingSettings, *, version: str) -> "CallTracer | None":
    """Return what makes spans of calls; None without an endpoint, and nothing is imported then.

    Raises:
        SettingsError: There is an endpoint, but OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from lokr_serve.tracing.export import build_processor
        from lokr_serve.tracing.tracer import CallTracer
    except ImportError as error:
        raise SettingsError(
            f"tracing.endpoint needs OpenTelemetry ({error}); "
            "install it with: pip install 'lokr-serve[tracing]'"
        ) from error
    return CallTracer(build_processor(settings.endpoint), settings, version=version)

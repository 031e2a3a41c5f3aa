"""Metrics: what the server counts and measures, and how scrapers get it."""

from lokr_serve.metrics.activity import AdapterActivity
from lokr_serve.metrics.busiest import OTHER, BusiestCounter
from lokr_serve.metrics.definitions import Metrics
from lokr_serve.metrics.exposition import Exposition
from lokr_serve.metrics.manifest import ManifestMetrics

__all__ = ["OTHER", "AdapterActivity", "BusiestCounter", "Exposition", "ManifestMetrics", "Metrics"]

"""fleet: several replicas behind Envoy, thousands of adapters, and ways to route their requests."""

from benchmarks.fleet.run import run

__all__ = ["run"]

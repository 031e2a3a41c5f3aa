"""Tests of the adapters: store, residency, merging and the registry."""

"""Tests of the manifest: reading it, following it, and holding adapters to it."""

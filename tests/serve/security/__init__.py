"""Tests of what callers without credentials, and hostile ones, can do."""

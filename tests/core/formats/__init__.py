"""Tests of the readers of adapter files."""

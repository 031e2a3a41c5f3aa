"""Tests of what surrounds calls."""

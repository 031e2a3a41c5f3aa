"""Tests of the services themselves."""

"""Tests of names: every key of a file finds its module, and the right rows of it."""

"""Tests of the core, of the server and of the examples; the folders mirror the packages."""

"""Tests of who may call, and what each caller may take."""

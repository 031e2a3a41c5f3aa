"""Tests of the conversion of messages."""

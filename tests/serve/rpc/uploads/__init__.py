"""Uploads through a real channel."""

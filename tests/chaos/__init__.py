"""Chaos: a real server under everything at once, killed and started anew, and what must hold."""

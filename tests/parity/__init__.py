"""Parity: what adapters do here is what they do in the programs that trained them."""

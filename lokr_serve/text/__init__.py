"""The text engine: from checked requests to a stream of tokens and text."""

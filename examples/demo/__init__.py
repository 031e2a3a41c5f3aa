"""A small model and its adapters, made on the spot and served to several clients at once."""

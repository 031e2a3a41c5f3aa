"""The oracle: random traffic on the real registry and engine, held against the trainers' models."""

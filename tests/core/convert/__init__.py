"""Adapters in other layouts, held against the trainers' own loaders."""

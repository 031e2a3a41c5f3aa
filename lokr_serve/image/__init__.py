"""The image engine: stock pipelines of diffusers, many requests to a batch."""

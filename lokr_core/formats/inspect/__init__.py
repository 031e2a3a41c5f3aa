"""What a file of an adapter holds, and how it fits a base model."""

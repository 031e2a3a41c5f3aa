"""What is told of adapter files."""

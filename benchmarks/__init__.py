"""What serving costs, each figure a ratio against a baseline."""

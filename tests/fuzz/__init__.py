"""A mutation fuzzer of adapter files; ``make fuzz`` is its long run."""

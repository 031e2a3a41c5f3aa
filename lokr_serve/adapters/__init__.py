"""Which adapters the server knows, which are in memory, and who uses them."""

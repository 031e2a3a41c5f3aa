"""What surrounds every call: who makes it, what it may do, how it ends, and what is told of it."""

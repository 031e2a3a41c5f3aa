"""The traps of adapter files and of the programs that write and read them, one by one.

Each is numbered; a test's name begins with its number, and fails where the trap is walked into.
"""

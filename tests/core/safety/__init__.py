"""Tests of what hostile files can do: nothing but be refused."""

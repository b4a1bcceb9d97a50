"""Facts about a program; never mutates it."""

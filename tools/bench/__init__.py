"""Measures what is claimed about time and memory: `python -m tools.bench`."""

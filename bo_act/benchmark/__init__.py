"""Benchmarks: measured values of a whole space, searches replayed on them, and comparisons."""

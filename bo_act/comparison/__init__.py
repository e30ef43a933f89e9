"""Comparisons of searches replayed on benchmarks, with their uncertainty."""

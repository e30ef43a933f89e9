"""Comparisons: searches replayed on benchmarks, how they end, and how sure that is."""

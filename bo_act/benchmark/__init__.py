"""Benchmarks: measured values of a whole space, as Parquet or Act-Bench files."""

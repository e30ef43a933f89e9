"""Benchmarks: measured values of a whole space, in files of our own and in the Act-Bench form."""

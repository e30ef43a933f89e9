"""Numerical properties of functions: slopes, faults, smoothness, equality."""

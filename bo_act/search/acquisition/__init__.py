"""Acquisition functions over a pool of candidates."""

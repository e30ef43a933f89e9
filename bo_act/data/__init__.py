"""Data sets: read, split and augmented."""

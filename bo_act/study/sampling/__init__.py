"""Choosing the functions of a study's trials."""

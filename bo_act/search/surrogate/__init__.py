"""Surrogates: what predicts values of points."""

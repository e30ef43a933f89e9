"""Surrogates: models that predict the values of points."""

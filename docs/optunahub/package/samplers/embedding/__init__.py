"""Bayesian optimization over a finite set of anything, by the coordinates of its items."""

from bo_act import EmbeddingSampler

__all__ = ["EmbeddingSampler"]

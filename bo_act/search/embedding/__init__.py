"""Embeddings: from features to points."""

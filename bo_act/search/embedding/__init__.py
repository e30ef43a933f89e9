"""Embeddings: points made of features."""

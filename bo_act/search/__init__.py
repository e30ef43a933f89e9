"""Proposing: embedding, surrogate, acquisition, and the searcher that joins them."""

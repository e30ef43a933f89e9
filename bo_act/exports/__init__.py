"""Exports: an activation function as code or a model that stands alone without bo-act."""

"""Activation functions: operators, expressions, torch modules, and the spaces that hold them."""

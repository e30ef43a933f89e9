"""Activation functions: operators, expressions, their values and slopes, torch modules."""

"""Fully connected network for tables, with one activation after each hidden layer.

Source: the textbook multilayer perceptron (Rumelhart, Hinton and Williams 1986).

Parameters: 9,089 for 10 columns and one number (diabetes), 10,434 for 30 columns and two classes
(breast_cancer).

Options:
    widths: units of each hidden layer (default 64, 64, 64).
    dropout: share of each hidden layer's units that are dropped in training (default 0).
"""

from collections.abc import Callable, Sequence

from torch import nn


def build(
    activation: Callable[[], nn.Module],
    *,
    in_features: int,
    out_features: int,
    widths: Sequence[int] = (64, 64, 64),
    dropout: float = 0.0,
) -> nn.Module:
    """Return the network, from rows (b, ...) to logits or numbers (b, out_features)."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_features
    for width in widths:
        layers += [nn.Linear(inputs, width), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    layers.append(nn.Linear(inputs, out_features))
    return nn.Sequential(*layers)

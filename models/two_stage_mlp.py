"""Fully connected network with two activations: one in its early layers, one in its late ones.

Source: the multilayer perceptron of ``mlp.py``, whose places have names.

Parameters: 17,290 for 8x8 gray images and 10 classes, 63,370 for 28x28.

Options:
    early: units of each hidden layer with the activation ``early`` (default 64, 64).
    late: units of each hidden layer after them, with the activation ``late`` (default 64, 64).
"""

from collections.abc import Callable, Sequence

from torch import nn


def build(
    activation: Callable[[str], nn.Module],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    early: Sequence[int] = (64, 64),
    late: Sequence[int] = (64, 64),
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * image_size**2
    for name, widths in {"early": early, "late": late}.items():
        for width in widths:
            layers += [nn.Linear(inputs, width), activation(name)]
            inputs = width
    layers.append(nn.Linear(inputs, num_classes))
    return nn.Sequential(*layers)

"""Fully connected network, with one activation after each hidden layer.

Source: the textbook multilayer perceptron (Rumelhart, Hinton and Williams 1986).

Parameters: 13,130 for 8x8 gray images and 10 classes, 59,210 for 28x28.

Options:
    widths: units of each hidden layer (default 64, 64, 64).
"""

from collections.abc import Callable, Sequence

from torch import nn


def build(
    activation: Callable[[], nn.Module],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    widths: Sequence[int] = (64, 64, 64),
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * image_size**2
    for width in widths:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    layers.append(nn.Linear(inputs, num_classes))
    return nn.Sequential(*layers)

"""Small convolutional network for small images, made to train in seconds on a CPU.

Each block is a 3x3 convolution, batch normalization, the activation and 2x2 max pooling; the first
block has a stride of 2 instead of the pooling, so that no layer works at full resolution. Then
global average pooling and one linear layer.

Source: written for bo-act, of parts from LeCun et al. 1998 (convolution and pooling), Ioffe and
Szegedy 2015 (batch normalization) and Lin et al. 2014 (global average pooling).

Parameters: 24,058 with one input channel and 10 classes, whatever the image size.

Options:
    widths: channels of each block (default 16, 32, 64). Each block halves the image, so images
        need at least 2 ** len(widths) pixels a side.
    batch_norm: normalize before each activation (default true).
"""

from collections.abc import Callable, Sequence

from torch import nn


def build(
    activation: Callable[[], nn.Module],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    widths: Sequence[int] = (16, 32, 64),
    batch_norm: bool = True,
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    if image_size < 2 ** len(widths):
        raise ValueError(
            f"expected images of at least {2 ** len(widths)} pixels a side "
            f"for {len(widths)} blocks, got {image_size}"
        )
    layers: list[nn.Module] = []
    channels = in_channels
    for block, width in enumerate(widths):
        stride = 2 if block == 0 else 1
        # A bias before batch normalization would be subtracted again.
        layers.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(activation())
        if block > 0:
            layers.append(nn.MaxPool2d(2))
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)

"""All-CNN-C: nine convolutions, no pooling layers, no linear layer.

3x3 convolutions of 96, 96, 96 (stride 2), 192, 192, 192 (stride 2) and 192 channels, then 1x1
convolutions of 192 and ``num_classes`` channels, and the mean over all positions. Each has a bias
and, but for the last, is followed by the activation. All 3x3 convolutions are padded by 1.

Source: Springenberg, Dosovitskiy, Brox and Riedmiller 2015, "Striving for Simplicity: The All
Convolutional Net", https://arxiv.org/abs/1412.6806, table 1 and section 3.

Parameters: 1,369,738 with 3 input channels and 10 classes, whatever the image size.

Options:
    dropout: share of values dropped after each of the two strided convolutions (default 0; the
        paper has 0.5).
    input_dropout: share of input values dropped (default 0; the paper has 0.2).
    activate_logits: apply the activation after the last convolution too, as the paper does
        (default false, because a bounded function there would cap the network's confidence).
"""

from collections.abc import Callable

from torch import nn


def build(
    activation: Callable[[], nn.Module],
    *,
    in_channels: int,
    image_size: int,  # noqa: ARG001
    num_classes: int,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    activate_logits: bool = False,
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    layers: list[nn.Module] = []
    if input_dropout > 0:
        layers.append(nn.Dropout(input_dropout))
    channels = in_channels
    for width, kernel, stride in (
        (96, 3, 1),
        (96, 3, 1),
        (96, 3, 2),
        (192, 3, 1),
        (192, 3, 1),
        (192, 3, 2),
        (192, 3, 1),
        (192, 1, 1),
    ):
        layers += [
            nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2),
            activation(),
        ]
        if stride == 2 and dropout > 0:
            layers.append(nn.Dropout(dropout))
        channels = width
    layers.append(nn.Conv2d(channels, num_classes, 1))
    if activate_logits:
        layers.append(activation())
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)

"""ResNet-56 for small images: 55 convolutions in residual blocks, and one linear layer.

A 3x3 convolution of 16 channels; three stages of 9 blocks with 16, 32 and 64 channels, of which
the second and the third halve the image with a stride of 2 in their first convolution; the mean
over all positions; one linear layer. A block is two 3x3 convolutions, each followed by batch
normalization, with the activation between them and after the sum with the block's input (the
shortcut). Where the shape changes, the shortcut takes every second pixel and fills the new
channels with zeros ("option A"), so that shortcuts have no parameters. Weights of convolutions
are drawn as in He et al. 2015 (https://arxiv.org/abs/1502.01852).

Source: He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image Recognition",
https://arxiv.org/abs/1512.03385, section 4.2 (6n + 2 layers, n = 9).

Parameters: 853,018 with 3 input channels and 10 classes, whatever the image size (the paper: 0.85
million).

Options:
    blocks: blocks of each stage, the paper's n (default 9; 3, 5, 7 and 18 are ResNet-20, -32, -44
        and -110).
    widths: channels of each stage, none narrower than the one before (default 16, 32, 64).
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(
        self, activation: Callable[[], nn.Module], channels: int, width: int, stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = width - channels
        self.residual = nn.Sequential(
            convolution(channels, width, stride),
            nn.BatchNorm2d(width),
            activation(),
            convolution(width, width, 1),
            nn.BatchNorm2d(width),
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        out: Tensor = self.activation(self.residual(x) + shortcut)
        return out


def convolution(channels: int, width: int, stride: int) -> nn.Conv2d:
    """Return a 3x3 convolution without bias: batch normalization would subtract it again."""
    layer = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return layer


def build(
    activation: Callable[[], nn.Module],
    *,
    in_channels: int,
    image_size: int,  # noqa: ARG001
    num_classes: int,
    blocks: int = 9,
    widths: Sequence[int] = (16, 32, 64),
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    if blocks < 1:
        raise ValueError(f"expected at least one block a stage, got {blocks}")
    if not widths or list(widths) != sorted(widths):
        raise ValueError(
            f"expected widths of which none is narrower than the one before, got {list(widths)}: "
            "a shortcut can add channels, not remove them"
        )
    channels = widths[0]
    layers: list[nn.Module] = [
        convolution(in_channels, channels, 1),
        nn.BatchNorm2d(channels),
        activation(),
    ]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(activation, channels, width, stride))
            channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)

"""Vision transformer for small images, with the activation in the MLP of each encoder block.

A convolution cuts the image into patches of 4x4 pixels and maps each to a token of 192 numbers; a
learned position embedding is added; 6 encoder blocks follow, each x + attention(norm(x)) and then
x + MLP(norm(x)) with 3 heads and 768 hidden units; then layer normalization, the mean over all
tokens and one linear layer.

The mean takes the place of the paper's class token: it is as good or better for small models
(Beyer, Zhai and Kolesnikov 2022, https://arxiv.org/abs/2205.01580), and every token of the last
block takes part in the loss, so that all positions show in its Fisher matrix.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition
at Scale", https://arxiv.org/abs/2010.11929, section 3.1. Width and heads are those of DeiT-Ti
(Touvron et al. 2021, https://arxiv.org/abs/2012.12877), with half of its depth.

Parameters: 2,693,194 for 32x32 images with 3 channels and 10 classes.

Options:
    patch: side of a patch in pixels, of which the image's side is a multiple (default 4).
    depth: encoder blocks (default 6).
    width: numbers in a token (default 192).
    heads: attention heads, of which the width is a multiple (default 3).
    mlp_ratio: hidden units of an MLP for each number in a token (default 4).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(
        self, activation: Callable[[], nn.Module], width: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            activation(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(x)
        return out


class Tokens(nn.Module):
    def __init__(self, in_channels: int, image_size: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty((image_size // patch) ** 2, width))
        nn.init.normal_(self.position, std=0.02)  # as in the paper's code

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.patches(images).flatten(2).mT
        return tokens + self.position


class Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def build(
    activation: Callable[[], nn.Module],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    patch: int = 4,
    depth: int = 6,
    width: int = 192,
    heads: int = 3,
    mlp_ratio: int = 4,
) -> nn.Module:
    """Return the network, from images (b, c, h, w) to logits (b, num_classes)."""
    for name, value in (
        ("patch", patch),
        ("depth", depth),
        ("width", width),
        ("heads", heads),
        ("mlp_ratio", mlp_ratio),
    ):
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    if image_size % patch:
        raise ValueError(
            f"expected images whose side is a multiple of the patch of {patch} pixels, "
            f"got {image_size}; set the option patch"
        )
    if width % heads:
        raise ValueError(f"expected a width that is a multiple of {heads} heads, got {width}")
    return nn.Sequential(
        Tokens(in_channels, image_size, patch, width),
        *(Block(activation, width, heads, mlp_ratio * width) for _ in range(depth)),
        nn.LayerNorm(width),
        Mean(),
        nn.Linear(width, num_classes),
    )

"""Input factors of convolutions: the sum of x xᵀ over all patches x of all images.

Symbols, with shapes:

    B, C, k  images, channels, groups; c = C/k channels of one group
    p        size of one group's patch: c times the places of the kernel
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

__all__ = ["Convolution", "double", "gram", "patch_means", "patch_products"]

ConvLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Bytes of patches at a time.
_CHUNK = 1 << 27

# Strips of a product of a matrix with itself, and their least width.
_STRIPS = 4
_STRIP = 32


@dataclass(frozen=True)
class Convolution:
    """Options of a convolution, axis by axis.

    Attributes:
        kernel, stride, dilation: of each spatial axis.
        padding: (before, after) of each spatial axis.
        groups: k.
        mode: of the padding, as ``nn.functional.pad`` names it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    mode: str

    @classmethod
    def of(cls, layer: ConvLayer) -> Convolution:
        """Read a layer's settings."""
        padding = []
        for axis, kernel in enumerate(layer.kernel_size):
            if layer.padding == "same":
                total = layer.dilation[axis] * (kernel - 1)
                padding.append((total // 2, total - total // 2))
            else:
                pad = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
                padding.append((pad, pad))
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return cls(
            tuple(layer.kernel_size),
            tuple(layer.stride),
            tuple(layer.dilation),
            tuple(padding),
            layer.groups,
            mode,
        )

    @property
    def pointwise(self) -> bool:
        """Whether each pixel is a patch, so that this is a linear layer."""
        ones = {*self.kernel, *self.stride, self.groups}
        return ones == {1} and not any(map(any, self.padding))

    def patch(self, channels: int) -> int:
        """Return the size of one group's patch for a number of input channels."""
        return channels // self.groups * math.prod(self.kernel)

    def outputs(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of positions along each axis for an input of these sizes."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation, (before, after) in zip(
                sizes, self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        )

    def padded(self, x: Tensor) -> tuple[Tensor, Convolution]:
        """Return the padded input and the same convolution without padding."""
        pads = [pad for pair in reversed(self.padding) for pad in pair]
        bare = replace(self, padding=((0, 0),) * len(self.padding), mode="constant")
        return (nn.functional.pad(x, pads, mode=self.mode) if any(pads) else x), bare


def patch_products(x: Tensor, convolution: Convolution, bias_input: float | None) -> Tensor:
    """Return the sum of x xᵀ over all patches of all images.

    Args:
        x: (B, C, ...) images with one to three spatial axes.
        convolution: its options.
        bias_input: number to append to each patch, for a bias, or None.

    Returns:
        (k, p, p) float64, or p + 1 with ``one``; rows in the order of the layer's weight. Products
        are in the dtype of ``x``.
    """
    total: Tensor | None = None
    for rows in patches(x, convolution, bias_input):
        part = double(rows @ rows.mT)
        total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError(f"expected at least one image, got shape {tuple(x.shape)}")
    return total


def patch_means(x: Tensor, convolution: Convolution, bias_input: float | None) -> Tensor:
    """Return the mean patch of each image, (k, p, B) in the dtype of ``x``."""
    positions = math.prod(convolution.outputs(tuple(x.shape[2:])))
    return torch.cat(
        [
            rows.unflatten(-1, (-1, positions)).mean(-1)
            for rows in patches(x, convolution, bias_input)
        ],
        dim=-1,
    )  # fmt: skip


def double(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if the device lacks float64."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def gram(rows: Tensor) -> Tensor:
    """Return the sum of x xᵀ over rows x, (..., n, n) from (..., rows, n).

    On the CPU a large product is computed in strips above the diagonal, and the rest is copied:
    five eighths of the work.
    """
    n = rows.shape[-1]
    step = -(-n // _STRIPS)
    if rows.device.type != "cpu" or step < _STRIP:
        return rows.mT @ rows
    result = rows.new_empty(*rows.shape[:-2], n, n)
    for start in range(0, n, step):
        end = min(start + step, n)
        strip = rows[..., start:end].mT @ rows[..., start:]
        result[..., start:end, start:] = strip
        result[..., end:, start:end] = strip[..., end - start :].mT
    return result


def patches(x: Tensor, convolution: Convolution, bias_input: float | None) -> Iterator[Tensor]:
    """Yield (k, p, positions) patches, a few images at a time."""
    positions = math.prod(convolution.outputs(tuple(x.shape[2:])))
    size = x.shape[1] * math.prod(convolution.kernel) * positions * x.element_size()
    for images in x.split(max(1, _CHUNK // max(size, 1))):
        padded, bare = convolution.padded(images)
        axes = len(bare.kernel)
        for axis in range(axes):  # (B, C, H, W) becomes (B, C, H', W', K1, K2), a view
            reach = bare.dilation[axis] * (bare.kernel[axis] - 1) + 1
            padded = padded.unfold(2 + axis, reach, bare.stride[axis])
            padded = padded[..., :: bare.dilation[axis]]
        padded = padded.unflatten(1, (bare.groups, -1))
        order = [*range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes)]
        padded = padded.permute(1, 2, *order)
        p, count = math.prod(padded.shape[1 : 2 + axes]), math.prod(padded.shape[2 + axes :])
        rows = x.new_empty(bare.groups, p + (bias_input is not None), count)
        rows[:, :p].view(padded.shape).copy_(padded)  # the one copy of the patches
        if bias_input is not None:
            rows[:, p] = bias_input
        yield rows

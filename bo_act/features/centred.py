"""Input factors by products in float32, with the mean of the inputs put back in float64.

Symbols, with shapes:

    c, μ   channels; (c,) their means over images and pixels
    x'     inputs less their means
    u, v   taps: places in the kernel, T of them; a linear layer has one
    p      numbers of a patch: c·T, and one more for a bias

A patch is x = x' + m, where m is μ at the taps that see the image and zero beyond its border, so
that

    Σ x xᵀ = Σ x' x'ᵀ + Σ x' mᵀ + Σ m x'ᵀ + Σ m mᵀ

and the last three are sums of x' over rectangles of pixels, and numbers of positions, times μ.
The mean mostly has the largest part of the trace, and rounding errors are a share of what is
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from bo_act.features.patches import Convolution, double

__all__ = ["centred_products"]

Products = Callable[[Tensor], Tensor]


def centred_products(
    x: Tensor, convolution: Convolution | None, biased: bool, products: Products
) -> tuple[Tensor, float]:
    """Return the sum of x xᵀ over all positions, and the share of its trace that was multiplied.

    Args:
        x: (B, c, ...) images, with padding of zeros or none; (rows, c) for a linear layer.
        convolution: of one group; None for a linear layer.
        biased: whether each x ends in 1.
        products: returns the sum, (1, p, p) float64, for inputs like ``x``.

    Returns:
        (1, p, p) float64, and a number in [0, 1].
    """
    mean = x.mean([0, *range(2, x.dim())])
    centred = x - mean.view(-1, *[1] * (x.dim() - 2))
    sums = products(centred)
    width = sums.shape[-1] - biased
    multiplied = float(sums[0].diagonal()[:width].sum())
    terms, counts = _terms(centred, double(mean), convolution)
    sums[0, :width, :width] += terms
    if biased:
        row = (double(mean)[:, None] * counts).flatten()
        sums[0, -1, :width] += row
        sums[0, :width, -1] += row
    trace = float(sums[0].diagonal().sum())
    return sums, multiplied / trace if trace else 0.0


def _terms(centred: Tensor, mean: Tensor, convolution: Convolution | None) -> tuple[Tensor, Tensor]:
    """Return the sum of x' mᵀ + m x'ᵀ + m mᵀ, (c·T, c·T), and each tap's positions, (T,)."""
    pixels = double(centred).sum(0)
    axes = _seen(convolution, tuple(centred.shape[2:])) if convolution else []
    taps = list(product(*(range(len(axis)) for axis in axes)))
    stride = convolution.stride if convolution else ()
    cross = mean.new_zeros(len(taps), len(taps), len(mean))  # of the first tap's pixel
    both = mean.new_zeros(len(taps), len(taps))
    for (i, u), (j, v) in product(enumerate(taps), repeat=2):
        where: list[slice] = []
        count = len(centred)
        for axis, step in enumerate(stride):
            shift, first = axes[axis][u[axis]]
            second = axes[axis][v[axis]][1]
            start, stop = max(first.start, second.start), min(first.stop, second.stop)
            count *= max(0, stop - start)
            begin = step * start + shift
            where.append(slice(begin, begin + step * max(0, stop - start), step))
        both[i, j] = count
        if count:
            cross[i, j] = pixels[(slice(None), *where)].reshape(len(mean), -1).sum(1)
    mixed = torch.einsum("uvc,d->cudv", cross, mean)
    mixed = mixed + mixed.permute(2, 3, 0, 1) + torch.einsum("uv,c,d->cudv", both, mean, mean)
    size = len(mean) * len(taps)
    return mixed.reshape(size, size), both.diagonal()


def _seen(convolution: Convolution, sizes: tuple[int, ...]) -> list[list[tuple[int, range]]]:
    """Return for each axis and tap its shift, and the output positions at which it sees a pixel."""
    axes = []
    for axis, count in enumerate(convolution.outputs(sizes)):
        step, size = convolution.stride[axis], sizes[axis]
        taps = []
        for u in range(convolution.kernel[axis]):
            shift = convolution.dilation[axis] * u - convolution.padding[axis][0]
            start = max(0, -(shift // step))  # the first i with step·i + shift >= 0
            stop = min(count, (size - 1 - shift) // step + 1)
            taps.append((shift, range(start, max(start, stop))))
        axes.append(taps)
    return axes

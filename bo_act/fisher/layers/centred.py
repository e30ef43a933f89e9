"""Input factors by products in float32, with the mean of the inputs added in float64.

Symbols, with shapes:

    c, μ   channels; (c,) their means over images and pixels
    x'     inputs less their means
    u, v   taps: places in the kernel, T of them, K along an axis; a linear layer has one
    p      numbers of a patch: c·T, and one more for a bias

A patch is x = x' + m, where m is μ at taps inside the image and zero beyond its border, so that

    Σ x xᵀ = Σ x' x'ᵀ + Σ x' mᵀ + Σ m x'ᵀ + Σ m mᵀ

and the last three are sums of x' over rectangles of pixels, and numbers of positions, times μ.
The mean usually dominates the trace, and rounding errors are proportional to the multiplied
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from bo_act.fisher.layers.patches import Convolution, double

__all__ = ["centred_products"]

Products = Callable[[Tensor], Tensor]


def centred_products(
    x: Tensor, convolution: Convolution | None, biased: bool, products: Products
) -> tuple[Tensor, Tensor]:
    """Return the sum of x xᵀ over all positions, and the diagonal of the float32 product.

    Args:
        x: (B, c, ...) images, with padding of zeros or none; (rows, c) for a linear layer.
        convolution: of one group; None for a linear layer.
        biased: whether each x ends in 1.
        products: returns the sum, (1, p, p) float64, for inputs like ``x``.

    Returns:
        (1, p, p) and (p,), float64; products with the 1 are exact.
    """
    mean = x.mean([0, *range(2, x.dim())])
    centred = x - mean.view(-1, *[1] * (x.dim() - 2))
    total = products(centred)
    width = total.shape[-1] - biased
    multiplied = total[0].diagonal().clone()
    exact = double(mean)
    cross, both = _overlaps(double(centred.sum(0)), len(x), convolution)
    # Σ x' mᵀ + Σ m mᵀ / 2, and with its transpose all three terms.
    half = torch.einsum("cuv,d->cudv", cross + 0.5 * both * exact.view(-1, 1, 1), exact)
    terms = total[0, :width, :width].unflatten(1, (len(exact), -1)).unflatten(0, (len(exact), -1))
    terms.add_(half).add_(half.permute(2, 3, 0, 1))
    if biased:
        row = cross.diagonal(dim1=1, dim2=2) + exact[:, None] * both.diagonal()
        total[0, -1, :width] = total[0, :width, -1] = row.flatten()
        multiplied[-1] = 0.0
    return total, multiplied


def _overlaps(
    pixels: Tensor, images: int, convolution: Convolution | None
) -> tuple[Tensor, Tensor]:
    """Return sums over the positions with two taps inside the image.

    Args:
        pixels: (c, ...) sums of x' over the images, float64.
        images: B.
        convolution: None for a linear layer.

    Returns:
        (c, T, T) sums of x' at the first tap's pixels, and (T, T) numbers of positions.
    """
    sizes = tuple(pixels.shape[1:])
    both = pixels.new_tensor([[float(images)]])
    cross = pixels[..., None, None]
    for axis in range(len(sizes)):
        if convolution is None:  # pragma: no cover - a linear layer has no axes
            break
        seen = _seen(convolution, axis, sizes).to(pixels.device)
        # Over the remaining axes, for all taps along the earlier ones.
        cross = torch.einsum("ci...uv,sti->c...usvt", cross, seen).flatten(-2).flatten(-3, -2)
        both = torch.einsum("uv,sti->usvt", both, seen).flatten(2).flatten(0, 1)
    return cross.reshape(len(pixels), *both.shape), both


def _seen(convolution: Convolution, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """Return for two taps along one axis the first one's pixels while both are inside.

    Returns:
        (K, K, pixels) float64, 1 or 0.
    """
    taps, size = convolution.kernel[axis], sizes[axis]
    starts = convolution.stride[axis] * torch.arange(convolution.outputs(sizes)[axis], device="cpu")
    places = starts - convolution.padding[axis][0]
    places = places + convolution.dilation[axis] * torch.arange(taps, device="cpu")[:, None]
    inside = (places >= 0) & (places < size)
    seen = torch.zeros(taps, taps, size, dtype=torch.float64, device="cpu")
    for first, second in product(range(taps), repeat=2):
        seen[first, second, places[first][inside[first] & inside[second]]] = 1.0
    return seen

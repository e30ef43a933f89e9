"""``nn.Embedding`` as a linear layer on unit vectors.

Symbols, with shapes:

    V, q   tokens of the table, and the numbers of each of its vectors
    x      (V,) the unit vector of one position's token
    A      (V, V) = 1/(B·T) · sum over images and positions of x xᵀ: each token's share of the
    positions; only its diagonal is stored

The product of a one-hot vector with itself has one number, so A is diagonal in K-FAC-expand. In
K-FAC-reduce, x would be a histogram of tokens and A have V² numbers, so embeddings are expanded
there, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bo_act.errors import FeatureError
from bo_act.fisher.layers.patches import double
from bo_act.fisher.layers.trace import LayerFactors
from bo_act.fisher.layers.weights import WeightTrace
from bo_act.fisher.rounding import rounding_floor

__all__ = ["EmbeddingTrace"]


class EmbeddingTrace(WeightTrace):
    """A table of token vectors: look-up counts, and the sums over d.

    Positions of ``padding_idx`` do not train its vector and do not count. Indices shared by all
    images come as (1, T), mostly position numbers: each image gets a copy of their vectors, and so
    its own gradient.

    Args:
        name: of the layer.
        images: B.
        layer: the embedding.
    """

    def __init__(self, name: str, images: int, layer: nn.Embedding) -> None:
        super().__init__(name, images, biased=False)
        self.layer = layer
        self.masks: list[Tensor] = []  # trained positions of each call

    def see(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Record the indices and the vectors of one call."""
        if self.images == 1 or x.dim() < 2 or x.shape[0] != 1:
            return super().see(x, y)
        x = x.expand(self.images, *x.shape[1:])
        y = y.expand(self.images, *y.shape[1:]).clone()
        seen = super().see(x, y)
        return y if seen is None else seen

    def _see(self, x: Tensor, y: Tensor) -> bool:
        if x.is_floating_point() or y.shape[:-1] != x.shape or not self._by_image(x):
            return False
        layer, tokens = self.layer, x.flatten().long()
        count, q = layer.weight.shape
        if y.shape[-1] != q or bool(((tokens < 0) | (tokens >= count)).any()):
            return False
        expected = nn.functional.embedding(x, layer.weight).to(y.dtype)
        if not torch.allclose(y, expected, equal_nan=True):
            return False  # a subclass that scales vectors or shifts indices
        trained = tokens != (-1 if layer.padding_idx is None else layer.padding_idx)
        counts = double(torch.bincount(tokens[trained], minlength=count))
        self.inputs = counts if self.inputs is None else self.inputs + counts
        self.positions += int(trained.sum())
        self.outputs = q
        self.masks.append(trained.view(*x.shape, 1))
        return True

    def _by_image(self, x: Tensor) -> bool:
        """Tell whether the images are the first dimension, each with its own positions.

        (T,) position numbers in order are shared by all images, even if T = B.
        """
        if self.images == 1:
            return True
        ordered = torch.arange(x.shape[0] if x.dim() else 0, device=x.device)
        return x.shape[:1] == (self.images,) and not (x.dim() == 1 and torch.equal(x, ordered))

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients with respect to the vectors of each call, shaped like these."""
        super().backward(
            [
                None if gradient is None else gradient * mask
                for gradient, mask in zip(gradients, self.masks, strict=True)
            ]
        )

    def factors(self) -> LayerFactors:
        """Return the diagonal of the mean over all positions, (1, V), and the mean over B."""
        if self.inputs is None:  # pragma: no cover - covered layers only
            raise FeatureError(f"layer {self.name!r} was not called")
        a, q = self.inputs[None] / max(self.positions, 1), self.outputs
        g = a.new_zeros(1, q, q) if self.gradients is None else self.gradients / self.images
        self.check(a, g)
        floor = rounding_floor(self.eps)
        return LayerFactors(self.name, a, g, a.shape[1] * q, floor, kind="embedding")

"""Linear layers and convolutions: the sums over their inputs and gradients.

Symbols, with shapes, as in ``bo_act.fisher.kfac``:

    B, T       images; positions at which one image uses the layer's weights, over all calls
    k, p, q    groups; inputs (and bias) and outputs of one group
    x, d       inputs of one position, gradient with respect to its outputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bo_act.errors import FeatureError
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.layers.centred import centred_products
from bo_act.fisher.layers.correlation import correlated_products, worthwhile
from bo_act.fisher.layers.patches import (
    Convolution,
    double,
    gram,
    patch_means,
    patch_products,
)
from bo_act.fisher.layers.trace import LayerFactors, Trace, at_least_float32, in_range
from bo_act.fisher.options import Sharing
from bo_act.fisher.rounding import outweighs_rounding, rounding_floor

__all__ = ["CONVOLUTIONS", "WeightTrace", "weighted"]

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Multiplications per factor up to which float64 costs little: 0.02 s on two CPU cores. Larger
# factors are summed in float32, and again in float64 if rounding would change the spectrum.
_CHEAP = 1e9


def weighted(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer or a convolution.

    ``Conv1D`` of Hugging Face's transformers is a linear layer with a weight (in, out).
    """
    if isinstance(module, nn.Linear | CONVOLUTIONS):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2


class WeightTrace(Trace):
    """A linear layer or a convolution: the sums over x and d.

    Args:
        name: of the layer.
        images: B.
        biased: whether the layer has a bias.
        convolution: options of a convolution; None for a linear layer.
        sharing: ``expand`` or ``reduce``.
        shared: cache of the input factors that networks share on the same images.
    """

    def __init__(
        self,
        name: str,
        images: int,
        *,
        biased: bool,
        convolution: Convolution | None = None,
        sharing: Sharing = "expand",
        shared: InputFactorCache | None = None,
    ) -> None:
        super().__init__(name, images)
        self.biased = biased
        self.convolution = convolution
        self.groups = convolution.groups if convolution else 1
        self.sharing = sharing
        self.known = shared
        self.same = shared is not None
        self.positions = 0  # B·T so far
        self.outputs = 0  # k·q
        self.inputs: Tensor | None = None
        self.gradients: Tensor | None = None

    def _see(self, x: Tensor, y: Tensor) -> bool:
        axes = len(self.convolution.kernel) if self.convolution else 0
        channels = y.dim() - 1 - axes
        if self.convolution is None:
            positions = x.numel() // max(x.shape[-1], 1)
        else:
            x = x.reshape(-1, *x.shape[-1 - axes :])
            positions = x.shape[0] * math.prod(self.convolution.outputs(tuple(x.shape[2:])))
        if positions * y.shape[channels] != y.numel():
            return False
        self.positions += positions
        self.outputs = y.shape[channels]
        call = (self.name, len(self.edges))
        sums = self.known.find(call, x) if self.known else None
        if sums is None:
            self.same = False
            sums = self._input_sums(x, positions)
            if self.known:
                self.known.offer(call, x, sums)
        self.inputs = sums if self.inputs is None else self.inputs + sums
        return True

    def _input_sums(self, x: Tensor, positions: int) -> Tensor:
        """Return this call's sum of x xᵀ (``expand``), or of x by image, (k, p, B) (``reduce``)."""
        if self.convolution is not None and self.convolution.pointwise:
            x = x.movedim(1, -1)
        least = float(self.biased)  # includes the 1 of the bias
        if self.sharing == "reduce":
            scale = self._scale(x, "forward", least)
            share = self._share(x, positions)
            return double(self._means(x / scale, share, 1.0 / scale)) * (scale * share)
        convolution = self.convolution
        width = self.biased + (convolution.patch(x.shape[1]) if convolution else x.shape[-1])
        costly = self.groups * positions * width**2 > _CHEAP
        if x.dtype == torch.float32 and costly and self.groups == 1:
            rough = self._rough_sums(x)
            if rough is not None:
                return rough
        return self._squares(double(x), "forward", self._products, least)

    def _rough_sums(self, x: Tensor) -> Tensor | None:
        """Return the sum of x xᵀ by products in float32; None if rounding would matter."""
        convolution = self.convolution
        if convolution is None or convolution.pointwise:
            x, convolution = x.reshape(-1, x.shape[-1]), None
        elif convolution.mode != "constant":
            x, convolution = convolution.padded(x)
        bias_input = 1.0 if self.biased else None
        sums, multiplied = centred_products(
            x,
            convolution,
            self.biased,
            partial(products, convolution=convolution, bias_input=bias_input),
        )
        in_order = in_range(multiplied) and outweighs_rounding(sums[0], multiplied)
        return sums if in_order else None

    def _products(self, x: Tensor, scale: float) -> Tensor:
        return products(x, self.convolution, 1.0 / scale if self.biased else None)

    def _means(self, x: Tensor, share: int, bias_input: float) -> Tensor:
        if self.convolution is not None and not self.convolution.pointwise:
            patches = patch_means(x, self.convolution, bias_input if self.biased else None)
            by_image: Tensor = patches.unflatten(-1, (self.images, -1)).mean(-1)
            return by_image
        means = x.reshape(self.images, share, x.shape[-1]).mean(1).T.unsqueeze(0)
        if self.biased:
            means = nn.functional.pad(means, (0, 0, 0, 1), value=bias_input)
        return means

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients with respect to the outputs of each call, shaped like the outputs."""
        reduced: Tensor | None = None
        for gradient in gradients:
            if gradient is None:
                continue
            values = at_least_float32(gradient)
            if self.convolution is not None:
                values = values.movedim(-1 - len(self.convolution.kernel), -1)
            self.eps = max(self.eps, torch.finfo(gradient.dtype).eps)
            if self.sharing == "expand":
                self._add(self._gradient_sums(values))
            else:
                scale = self._scale(values, "backward")
                rows = self._rows(values / scale)
                share = self._share(gradient, rows.shape[1])
                part = double(rows.unflatten(1, (self.images, share)).sum(2)) * scale
                reduced = part if reduced is None else reduced + part
        if reduced is not None:
            self._add(reduced.mT @ reduced)

    def _gradient_sums(self, values: Tensor) -> Tensor:
        """Return this call's sum of d dᵀ, (k, q, q)."""
        q = values.shape[-1]
        if values.dtype == torch.float32 and values.numel() * q > _CHEAP and self.groups == 1:
            sums = self._covariance(values, 1.0)
            diagonal = sums[0].diagonal()
            if in_range(diagonal) and outweighs_rounding(sums[0], diagonal):
                return sums
        return self._squares(double(values), "backward", self._covariance)

    def _rows(self, values: Tensor) -> Tensor:
        """Return (k, positions, q) from (..., k·q)."""
        q = values.shape[-1] // self.groups
        return values.reshape(-1, self.groups, q).transpose(0, 1)

    def _covariance(self, values: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        return double(gram(self._rows(values)))

    def _add(self, product: Tensor) -> None:
        self.gradients = product if self.gradients is None else self.gradients.add_(product)

    def _share(self, values: Tensor, positions: int) -> int:
        """Return the number of positions of one image in one call; images are the first axis."""
        if positions % self.images:
            raise FeatureError(
                f"expected the {self.images} images in the first dimension at layer "
                f"{self.name!r}, got shape {tuple(values.shape)}; weight_sharing='expand' does "
                "not need the image of each position"
            )
        return positions // self.images

    def factors(self) -> LayerFactors:
        """Return the means over B·T and B."""
        if self.inputs is None:  # pragma: no cover - covered layers only
            raise FeatureError(f"layer {self.name!r} was not called")
        k, q = self.groups, self.outputs // self.groups
        inputs = self.inputs
        g = self.gradients
        g = inputs.new_zeros(k, q, q) if g is None else g / self.images
        if self.sharing == "expand":
            a = inputs / self.positions
        else:
            means = inputs * (self.images / self.positions)
            a = means @ means.mT / self.images
        self.check(a, g)
        return LayerFactors(
            self.name,
            a,
            g,
            k * a.shape[1] * q,
            rounding_floor(self.eps),
            shared=self.same,
            biased=self.biased,
            linear=self.convolution is None,
        )


def products(x: Tensor, convolution: Convolution | None, bias_input: float | None) -> Tensor:
    """Return the sum of x xᵀ over all positions, see ``patch_products``; (..., c) if linear."""
    if convolution is None or convolution.pointwise:
        return _linear_products(x.reshape(-1, x.shape[-1]), bias_input)
    way = correlated_products if worthwhile(x, convolution) else patch_products
    return way(x, convolution, bias_input)


def _linear_products(x: Tensor, bias_input: float | None) -> Tensor:
    """Return the sum of x xᵀ over (rows, p), (1, p, p) float64, p + 1 with a one for the bias."""
    product = double(gram(x))
    if bias_input is not None:
        sums = double(x.sum(0)) * bias_input
        corner = sums.new_tensor([bias_input * bias_input * x.shape[0]])
        product = torch.cat([product, sums[None]])
        product = torch.cat([product, torch.cat([sums, corner])[:, None]], dim=1)
    return product.unsqueeze(0)

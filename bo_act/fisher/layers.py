"""What each kind of layer contributes to K-FAC, summed up during a forward and backward passes.

Symbols, with shapes, as in ``bo_act.fisher.kfac``:

    B, T       images; positions at which one image uses the layer's weights, over all calls
    k, p, q    groups; inputs (and bias) and outputs of one group
    x, d       inputs of one position, gradient with respect to its outputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bo_act.errors import FeatureError
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.centred import centred_products
from bo_act.fisher.correlation import correlated_products, worthwhile
from bo_act.fisher.options import Sharing
from bo_act.fisher.patches import Convolution, double, gram, patch_means, patch_products
from bo_act.fisher.rounding import RESOLUTION, outweighs_rounding, rounding_floor

__all__ = [
    "CONVOLUTIONS",
    "LayerFactors",
    "Trace",
    "WeightTrace",
    "at_least_float32",
    "weighted",
]

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Squares of values in this range, and their sums, are far from the ends of float32's range.
SAFE_RANGE = (2.0**-30, 2.0**30)

# Multiplications of a factor up to which float64 costs little: 0.02 s on two CPU cores. A larger
# one is summed in float32, and again in float64 where rounding would tell in its spectrum.
_CHEAP = 1e9


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The two factors of one layer's block of the Fisher matrix.

    Attributes:
        name: the layer's name in the network; ``(root)`` for the network itself.
        a: (k, p, p) float64, input factor; of an embedding its diagonal, (1, p).
        g: (k, q, q) float64, output-gradient factor; zero where no gradient arrives.
        weights: k·p·q, number of the layer's weights and biases.
        floor: share of a factor's trace that its rounding errors stay below, see
            ``rounding_floor``.
        kind: ``weight``, or ``norm`` for the scale and shift of a normalization layer: there the
            k blocks (2, 2) of ``a`` are those of one channel's pair, and ``g`` is 1. ``embedding``
            for a table of vectors.
        shared: whether ``a`` is the same for every activation function.
        biased: whether the last row of ``a`` is that of a bias.
        linear: whether it is a linear layer.
    """

    name: str
    a: Tensor
    g: Tensor
    weights: int
    floor: float = RESOLUTION
    kind: Literal["weight", "norm", "embedding"] = "weight"
    shared: bool = False
    biased: bool = False
    linear: bool = False


class Trace:
    """What is known of one layer after the forward pass: where its outputs stand in the graph."""

    def __init__(self, name: str, images: int) -> None:
        self.name = name
        self.images = images
        self.edges: list[GradientEdge] = []
        self.regular = True
        self.reached = False  # by a gradient
        self.eps = 0.0  # of the coarsest dtype that inputs or gradients came in

    @property
    def covered(self) -> bool:
        """Whether the layer was called, and each call used its inputs as its class does."""
        return self.regular and bool(self.edges)

    def hook(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """See one call of the layer, as a forward hook."""
        del layer
        return self.see(args[0] if args else next(iter(kwargs.values())), output)

    def see(self, x: Tensor, y: Tensor) -> Tensor | None:
        """See the input and the output of one call.

        Inputs are used at once and the output is kept as an edge of the graph, not as a tensor,
        because what follows may change both tensors in place.

        Returns:
            What to go on with instead of ``y``, or None.
        """
        if not torch.is_grad_enabled():
            # By torch.no_grad in the network, or checkpointing that runs the layer again later.
            self.regular = False
            return None
        with torch.no_grad():
            values = at_least_float32(x)
            if values.is_floating_point() and y.is_floating_point():
                self.eps = max(self.eps, torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
            if not self._see(values, y):
                self.regular = False  # a subclass whose forward does more than its class
                return None
        if y.requires_grad:
            self.edges.append(get_gradient_edge(y))
            return None
        # The layer is frozen, and so is all before it or the graph is cut: one begins here.
        leaf = y.detach().requires_grad_()
        self.edges.append(get_gradient_edge(leaf))
        return leaf.clone()

    def _see(self, x: Tensor, y: Tensor) -> bool:
        raise NotImplementedError

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of one backward pass, one for each call; None where none arrived."""
        raise NotImplementedError

    def factors(self) -> LayerFactors:
        """Return the layer's factors once all passes are done."""
        raise NotImplementedError

    def _scale(self, values: Tensor, where: str, least: float = 0.0) -> float:
        """Return a power of two by which values are divided so that their squares are in range.

        Args:
            values: of any shape.
            where: ``forward`` or ``backward``.
            least: another value among them.

        Raises:
            FeatureError: one of them is not finite.
        """
        largest = 0.0
        if values.numel():
            # In the order of memory, and not as a norm: that takes many times as long on the CPU.
            order = sorted(range(values.dim()), key=values.stride, reverse=True)
            low, high = torch.aminmax(values.permute(order).flatten())
            largest = float(torch.maximum(-low, high).item())
        if not math.isfinite(largest):
            raise FeatureError(f"not finite in the {where} pass at layer {self.name!r}")
        largest = max(largest, least)
        if largest == 0.0 or SAFE_RANGE[0] < largest < SAFE_RANGE[1]:
            return 1.0
        return math.ldexp(1.0, math.frexp(largest)[1])

    def _squares(
        self,
        values: Tensor,
        where: str,
        multiply: Callable[[Tensor, float], Tensor],
        least: float = 0.0,
    ) -> Tensor:
        """Return sums of products of values, which are scaled where they left the range.

        The products themselves tell whether they did, so that the usual case needs no look at the
        values before.

        Args:
            values: of any shape.
            where: ``forward`` or ``backward``.
            multiply: from values and what they were divided by, (k, n, n) float64.
            least: as in ``_scale``.
        """
        sums = multiply(values, 1.0)
        if in_range(sums.diagonal(dim1=-2, dim2=-1)):
            return sums
        scale = self._scale(values, where, least)
        return sums if scale == 1.0 else multiply(values / scale, scale).mul_(scale * scale)

    def check(self, *factors: Tensor) -> None:
        """Refuse factors that overflowed."""
        if not all(math.isfinite(float(factor.sum().item())) for factor in factors):
            raise FeatureError(f"not finite in the factors of layer {self.name!r}")


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
        convolution: what a convolution does with its input; None for a linear layer.
        sharing: ``expand`` or ``reduce``.
        shared: input factors that other networks of the batch have in common with this one.
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
        least = float(self.biased)  # the 1 of the bias is one of the values
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
        """Return the sum of x xᵀ by products in float32; None where rounding tells in it."""
        convolution = self.convolution
        if convolution is None or convolution.pointwise:
            x, convolution = x.reshape(-1, x.shape[-1]), None
        elif convolution.mode != "constant":
            x, convolution = convolution.padded(x)
        one = 1.0 if self.biased else None
        sums, multiplied = centred_products(
            x, convolution, self.biased, partial(products, convolution=convolution, one=one)
        )
        in_order = in_range(multiplied) and outweighs_rounding(sums[0], multiplied)
        return sums if in_order else None

    def _products(self, x: Tensor, scale: float) -> Tensor:
        return products(x, self.convolution, 1.0 / scale if self.biased else None)

    def _means(self, x: Tensor, share: int, one: float) -> Tensor:
        if self.convolution is not None and not self.convolution.pointwise:
            patches = patch_means(x, self.convolution, one if self.biased else None)
            by_image: Tensor = patches.unflatten(-1, (self.images, -1)).mean(-1)
            return by_image
        means = x.reshape(self.images, share, x.shape[-1]).mean(1).T.unsqueeze(0)
        if self.biased:
            means = nn.functional.pad(means, (0, 0, 0, 1), value=one)
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
        """Return the positions of one image in one call; images come first in memory."""
        if positions % self.images:
            raise FeatureError(
                f"expected the {self.images} images in the first dimension at layer "
                f"{self.name!r}, got shape {tuple(values.shape)}; weight_sharing='expand' does "
                "not need to know which image a position belongs to"
            )
        return positions // self.images

    def factors(self) -> LayerFactors:
        """Return the means over B·T and B."""
        if self.inputs is None:  # pragma: no cover - asked of covered layers alone
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


def products(x: Tensor, convolution: Convolution | None, one: float | None) -> Tensor:
    """Return the sum of x xᵀ over all positions, see ``patch_products``; (..., c) where linear."""
    if convolution is None or convolution.pointwise:
        return _linear_products(x.reshape(-1, x.shape[-1]), one)
    way = correlated_products if worthwhile(x, convolution) else patch_products
    return way(x, convolution, one)


def _linear_products(x: Tensor, one: float | None) -> Tensor:
    """Return the sum of x xᵀ over (rows, p), (1, p, p) float64, p + 1 with a one for the bias."""
    product = double(gram(x))
    if one is not None:
        sums = double(x.sum(0)) * one
        corner = sums.new_tensor([one * one * x.shape[0]])
        product = torch.cat([product, sums[None]])
        product = torch.cat([product, torch.cat([sums, corner])[:, None]], dim=1)
    return product.unsqueeze(0)


def in_range(squares: Tensor) -> bool:
    """Tell whether the largest of some sums of squares is far from the ends of float32's range."""
    largest = float(squares.max().item())
    return SAFE_RANGE[0] ** 2 < largest < SAFE_RANGE[1] ** 2


def at_least_float32(values: Tensor) -> Tensor:
    """Return values cut from the graph, half precision as float32."""
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

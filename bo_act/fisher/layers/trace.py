"""Tracing a layer through forward and backward passes, for its factors.

Symbols, with shapes, as in ``bo_act.fisher.kfac``:

    B, T       images; positions at which one image uses the layer's weights, over all calls
    k, p, q    groups; inputs (and bias) and outputs of one group
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bo_act.errors import FeatureError
from bo_act.fisher.rounding import RESOLUTION

__all__ = ["LayerFactors", "Trace", "at_least_float32", "in_range"]

# Squares of values in this range, and their sums, are well inside float32's range.
SAFE_RANGE = (2.0**-30, 2.0**30)


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The two factors of one layer's block of the Fisher matrix.

    Attributes:
        name: the layer's name in the network; ``(root)`` for the network itself.
        a: (k, p, p) float64, input factor; of an embedding its diagonal, (1, p).
        g: (k, q, q) float64, output-gradient factor; zero if no gradient arrives.
        weights: k·p·q, number of the layer's weights and biases.
        floor: bound of a factor's rounding errors as a share of its trace, see ``rounding_floor``.
        kind: ``weight``, or ``norm`` for the scale and shift of a normalization layer: then ``a``
            has a block (2, 2) per channel, and ``g`` is 1. ``embedding`` for a table of vectors.
        shared: whether ``a`` is the same for every activation function.
        biased: whether the last row of ``a`` belongs to a bias.
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
    """A layer after the forward pass: its input sums, and its outputs' places in the graph."""

    def __init__(self, name: str, images: int) -> None:
        self.name = name
        self.images = images
        self.edges: list[GradientEdge] = []
        self.regular = True
        self.reached = False  # by a gradient
        self.eps = 0.0  # of the coarsest dtype of inputs and gradients

    @property
    def covered(self) -> bool:
        """Whether the layer was called, and each call computed what its class computes."""
        return self.regular and bool(self.edges)

    def hook(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """Record one call of the layer, as a forward hook."""
        del layer
        return self.see(args[0] if args else next(iter(kwargs.values())), output)

    def see(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Record the input and the output of one call.

        Inputs are used at once, and the output is stored as an edge of the graph, not as a tensor,
        because later layers may change both tensors in place.

        Returns:
            A replacement of ``y``, or None.
        """
        if not torch.is_grad_enabled():
            # By torch.no_grad in the network, or by checkpointing, which reruns the layer later.
            self.regular = False
            return None
        with torch.no_grad():
            values = at_least_float32(x)
            if values.is_floating_point() and y.is_floating_point():
                self.eps = max(self.eps, torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
            if not self._see(values, y):
                self.regular = False  # a subclass with a different forward
                return None
        if y.requires_grad:
            self.edges.append(get_gradient_edge(y))
            return None
        # The layer and all before it are frozen, or the graph is cut: start a graph here.
        leaf = y.detach().requires_grad_()
        self.edges.append(get_gradient_edge(leaf))
        return leaf.clone()

    def _see(self, x: Tensor, y: Tensor) -> bool:
        raise NotImplementedError

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of one backward pass, one per call; None if none arrived."""
        raise NotImplementedError

    def factors(self) -> LayerFactors:
        """Return the layer's factors after all passes."""
        raise NotImplementedError

    def _scale(self, values: Tensor, where: str, least: float = 0.0) -> float:
        """Return a power of two as divisor, so that the values' squares are in range.

        Args:
            values: of any shape.
            where: ``forward`` or ``backward``.
            least: another value to include.

        Raises:
            FeatureError: a value is not finite.
        """
        largest = 0.0
        if values.numel():
            # In memory order, and not as a norm, which takes many times as long on the CPU.
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
        """Return sums of products of values, scaled if they leave the range.

        The products show whether they do, so the usual case needs no scan of the values.

        Args:
            values: of any shape.
            where: ``forward`` or ``backward``.
            multiply: from values and their divisor, (k, n, n) float64.
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


def in_range(squares: Tensor) -> bool:
    """Tell whether the largest of some sums of squares is well inside float32's range."""
    largest = float(squares.max().item())
    return SAFE_RANGE[0] ** 2 < largest < SAFE_RANGE[1] ** 2


def at_least_float32(values: Tensor) -> Tensor:
    """Return detached values, half precision as float32."""
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

"""What is seen of any layer during a forward and backward passes, and the factors in the end.

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

# Squares of values in this range, and their sums, are far from the ends of float32's range.
SAFE_RANGE = (2.0**-30, 2.0**30)


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


def in_range(squares: Tensor) -> bool:
    """Tell whether the largest of some sums of squares is far from the ends of float32's range."""
    largest = float(squares.max().item())
    return SAFE_RANGE[0] ** 2 < largest < SAFE_RANGE[1] ** 2


def at_least_float32(values: Tensor) -> Tensor:
    """Return values cut from the graph, half precision as float32."""
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

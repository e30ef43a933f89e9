"""One layer's Kronecker factors, summed up during one forward and some backward passes.

Symbols, with shapes, as in ``bo_act.features.kfac``:

    k, p, q      groups; inputs (and bias) and outputs of one group
    positions    all positions of all images in one call of the layer
    rows         (k, p, positions) inputs or (k, q, positions) output gradients of one call
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bo_act.errors import FeatureError

__all__ = ["COVERED", "LayerFactors", "LayerTrace"]

Layer = nn.Linear | nn.Conv2d

COVERED = (nn.Linear, nn.Conv2d)

# Squares of values in this range, and their sums, are far from the ends of float32's range.
SAFE_RANGE = (2.0**-30, 2.0**30)


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The two factors of one layer's block of the Fisher matrix.

    Attributes:
        name: the layer's name in the network; ``(root)`` for the network itself.
        a: (k, p, p) float64, input factor.
        g: (k, q, q) float64, output-gradient factor; zero where no gradient arrives.
        weights: k·p·q, number of the layer's weights and biases.
        eps: machine epsilon of the dtype that the factors were computed in.
    """

    name: str
    a: Tensor
    g: Tensor
    weights: int
    eps: float


class LayerTrace:
    """What one layer's hook collects during the forward pass, and the sums over x and d."""

    def __init__(self, name: str, layer: Layer) -> None:
        self.name = name
        self.layer = layer
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.biased = layer.bias is not None
        self.positions = 0  # B·T so far
        self.edges: list[GradientEdge] = []
        self.regular = True
        self.inputs: Tensor | None = None
        self.gradients: Tensor | None = None
        self.eps = 0.0

    @property
    def covered(self) -> bool:
        """Whether the layer was called, and each call used its inputs as its class does."""
        return self.regular and self.inputs is not None

    def forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """Add this call's inputs to A and remember where its output stands in the graph.

        A is computed here and the output is kept as an edge of the graph, not as a tensor, because
        what follows may change both tensors in place.
        """
        del layer
        with torch.no_grad():
            values = _at_least_float32(args[0] if args else kwargs["input"])
            scale = _scale(values, f"not finite in the forward pass at layer {self.name!r}")
            if self.biased:
                scale = max(scale, 1.0)  # the 1 of the bias is one of the values
            rows = _input_rows(self.layer, values, scale)
            channels = output.shape[-1 if isinstance(self.layer, nn.Linear) else -3]
            if rows.shape[-1] != output.numel() // max(channels, 1):
                self.regular = False  # a subclass whose forward does more than its class
                return None
            self.positions += rows.shape[-1]
            self.inputs = _add(self.inputs, rows, scale)
            self.eps = torch.finfo(values.dtype).eps
        if output.requires_grad:
            self.edges.append(get_gradient_edge(output))
            return None
        # The layer is frozen, and so is all before it or the graph is cut: one begins here.
        leaf = output.detach().requires_grad_()
        self.edges.append(get_gradient_edge(leaf))
        return leaf.clone()

    def backward(self, gradient: Tensor) -> None:
        """Add the gradients of one call's output, (..., channels) or (B, channels, H, W), to G."""
        values = _at_least_float32(gradient)
        scale = _scale(values, f"not finite in the backward pass at layer {self.name!r}")
        rows = values if scale == 1.0 else values / scale
        if isinstance(self.layer, nn.Linear):
            rows = rows.reshape(1, -1, rows.shape[-1]).mT
        else:
            channels, pixels = rows.shape[-3], math.prod(rows.shape[-2:])
            rows = rows.reshape(-1, self.groups, channels // self.groups, pixels)
            rows = rows.permute(1, 2, 0, 3).flatten(2)
        self.gradients = _add(self.gradients, rows, scale)

    def factors(self, batch: int) -> LayerFactors:
        """Return the means over B·T and B."""
        if self.inputs is None:  # pragma: no cover - asked of covered layers alone
            raise FeatureError(f"layer {self.name!r} was not called")
        q = self.layer.weight.shape[0] // self.groups
        g = self.gradients
        g = self.inputs.new_zeros(self.groups, q, q) if g is None else g / batch
        a = self.inputs / self.positions
        if not math.isfinite(float((a.sum() + g.sum()).item())):
            raise FeatureError(f"not finite in the factors of layer {self.name!r}")
        return LayerFactors(self.name, a, g, a.shape[0] * a.shape[1] * q, self.eps)


def _input_rows(layer: Layer, x: Tensor, scale: float) -> Tensor:
    """Return (k, p, positions): all inputs or patches of one call, divided by ``scale``."""
    if scale != 1.0:
        x = x / scale
    if isinstance(layer, nn.Linear):
        x = x.reshape(-1, x.shape[-1])
        if layer.bias is not None:
            x = torch.cat([x, x.new_full((x.shape[0], 1), 1.0 / scale)], dim=1)
        return x.T.unsqueeze(0)
    x = x.reshape(-1, *x.shape[-3:])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, _padding(layer), mode=mode)
    for axis in range(2):  # (B, channels, H, W) becomes (B, channels, H', W', K1, K2), a view
        kernel, dilation = layer.kernel_size[axis], layer.dilation[axis]
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, layer.stride[axis])[..., ::dilation]
    patches = x.unflatten(1, (layer.groups, -1)).permute(1, 2, 5, 6, 0, 3, 4)
    size, positions = math.prod(patches.shape[1:4]), math.prod(patches.shape[4:])
    rows = x.new_empty(layer.groups, size + (layer.bias is not None), positions)
    rows[:, :size].view(patches.shape).copy_(patches)  # the one copy of the patches
    if layer.bias is not None:
        rows[:, size] = 1.0 / scale
    return rows


def _padding(layer: nn.Conv2d) -> list[int]:
    """Return the padding in the order of ``functional.pad``: left, right, top, bottom."""
    pads: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0 if isinstance(layer.padding, str) else int(layer.padding[axis])] * 2
    return pads


def _add(total: Tensor | None, rows: Tensor, scale: float) -> Tensor:
    """Return total + scale² · rows rowsᵀ in float64, the product in the dtype of ``rows``."""
    product = rows @ rows.mT
    product = product.cpu().double() if product.device.type == "mps" else product.double()
    if scale != 1.0:
        product *= scale * scale
    return product if total is None else total.add_(product)


def _scale(values: Tensor, problem: str) -> float:
    """Return a power of two by which values are divided so that their squares are in range."""
    largest = float(torch.linalg.vector_norm(values, math.inf).item()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise FeatureError(problem)
    if largest == 0.0 or SAFE_RANGE[0] < largest < SAFE_RANGE[1]:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1])


def _at_least_float32(values: Tensor) -> Tensor:
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

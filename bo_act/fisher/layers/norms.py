"""Normalization layers: the Fisher blocks of their scale and shift.

Symbols, with shapes:

    B, T   images; positions of one image, over all calls of the layer
    k      channels, or elements, with their own scale
    x̂, d   (B, T, k) normalized inputs; gradients with respect to the layer's outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.fisher.layers.patches import double
from bo_act.fisher.layers.trace import LayerFactors, Trace, at_least_float32
from bo_act.fisher.rounding import rounding_floor
from bo_act.torch_internals import InstanceNorm, RunningNorm

__all__ = ["NormTrace", "normalizes"]

NORMS = (RunningNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# Libraries' names of RMSNorm's epsilon.
EPS = ("eps", "variance_epsilon", "epsilon")


def normalizes(module: nn.Module) -> bool:
    """Tell whether a module is a normalization layer with a scale, by its class or its name.

    Libraries have their own RMSNorm, LlamaRMSNorm, RmsNorm and the like, with a ``weight`` as the
    only parameter.
    """
    if isinstance(module, NORMS):
        return getattr(module, "weight", None) is not None
    weights = dict(module.named_parameters())
    return type(module).__name__.lower().endswith("rmsnorm") and [*weights] == ["weight"]


class NormTrace(Trace):
    """The scale gamma and shift beta of a normalization layer: one block (2, 2) per channel.

    y = gamma x̂ + beta, so an image's gradients are the sums over its positions of d x̂ and of d.
    Blocks across channels are left out, as Osawa et al. 2019 (arXiv 1811.12019, unit-wise Fisher)
    do; within a channel nothing is approximated.

    Args:
        name: of the layer.
        images: B.
        layer: one that ``normalizes``.
    """

    def __init__(self, name: str, images: int, layer: Any) -> None:
        super().__init__(name, images)
        self.layer = layer
        self.shifted = getattr(layer, "bias", None) is not None
        self.last = isinstance(layer, nn.LayerNorm) or _is_rms(layer)
        self.normalized: list[Tensor] = []
        self.blocks: Tensor | None = None

    def _see(self, x: Tensor, y: Tensor) -> bool:
        self._scale(x, "forward")
        if x.shape[0] % self.images or x.dim() < 2:
            return False
        if self.last and x.shape[-len(self._shape()) :] != self._shape():
            return False  # a subclass for other axes, such as channels of images
        normalized = _normalize(self.layer, x)
        if not type(self.layer).__module__.startswith("torch.nn."):
            # Check the outputs: an unknown class may do anything, even on axes of equal length.
            expected, same = self._scaled(normalized), y.to(x.dtype)
            far = 1e-3 * float(expected.abs().nan_to_num().max()) if x.numel() else 0.0
            if not torch.allclose(same, expected, rtol=0, atol=far, equal_nan=True):
                return False
        self.normalized.append(self._by_image(normalized))
        return True

    def _scaled(self, normalized: Tensor) -> Tensor:
        """Return gamma x̂ + beta."""
        shape = (-1,) + (1,) * (normalized.dim() - 2)
        for name in ("weight", "bias"):
            part = getattr(self.layer, name, None)
            if part is not None:
                part = part.to(normalized.dtype)
                part = part if self.last else part.reshape(shape)
                normalized = normalized * part if name == "weight" else normalized + part
        return normalized

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients with respect to the outputs of each call, shaped like the outputs."""
        total: Tensor | None = None
        for x, gradient in zip(self.normalized, gradients, strict=True):
            if gradient is None:
                continue
            values = at_least_float32(gradient)
            self.eps = max(self.eps, torch.finfo(gradient.dtype).eps)
            scale = self._scale(values, "backward")
            d = self._by_image(values if scale == 1.0 else values / scale)
            # Summed in float64: the terms of an image cancel in part.
            parts = [double(d * x).sum(1)] + [double(d).sum(1)] * self.shifted
            pairs = torch.stack(parts, dim=-1) * scale  # (B, k, 2)
            total = pairs if total is None else total + pairs
        if total is not None:
            product = torch.einsum("bki,bkj->kij", total, total)
            self.blocks = product if self.blocks is None else self.blocks.add_(product)

    def factors(self) -> LayerFactors:
        """Return the mean over B."""
        k, p = self.normalized[0].shape[-1], 1 + self.shifted
        like = double(self.normalized[0].new_zeros(1))
        a = like.new_zeros(k, p, p) if self.blocks is None else self.blocks / self.images
        self.check(a)
        ones, floor = like.new_ones(k, 1, 1), rounding_floor(self.eps)
        return LayerFactors(self.name, a, ones, k * p, floor, kind="norm")

    def _shape(self) -> tuple[int, ...]:
        """Return the sizes of the normalized axes, which must be the last ones."""
        return tuple(getattr(self.layer, "normalized_shape", self.layer.weight.shape))

    def _by_image(self, values: Tensor) -> Tensor:
        """Return (B, T, k)."""
        values = values.flatten(-len(self._shape())) if self.last else values.movedim(1, -1)
        return values.reshape(self.images, -1, values.shape[-1])


def _is_rms(layer: nn.Module) -> bool:
    return isinstance(layer, nn.RMSNorm) or not isinstance(layer, NORMS)


def _normalize(layer: Any, x: Tensor) -> Tensor:
    """Return the normalized inputs, before scale and shift."""
    functional = nn.functional
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return functional.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    if _is_rms(layer):
        eps = next((getattr(layer, name) for name in EPS if hasattr(layer, name)), 0.0)
        return functional.rms_norm(x, list(layer.weight.shape), eps=eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, InstanceNorm):
        own = layer.training or layer.running_mean is None
        return functional.instance_norm(
            x, None if own else layer.running_mean, None if own else layer.running_var,
            use_input_stats=own, eps=layer.eps,
        )  # fmt: skip
    if layer.training or layer.running_mean is None:
        return functional.batch_norm(x, None, None, training=True, eps=layer.eps)
    return functional.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)

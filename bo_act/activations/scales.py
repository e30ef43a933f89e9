"""Learnt scales of an activation function, trained with the network.

A function f becomes b f(a x), with a = b = 1 at first, so that training starts from f itself.
Optionally each operator's value has a scale, too. After Bingham and Miikkulainen (2022),
"Discovering Parametric Activation Functions" (PANGAEA), who draw the parameters' places at random;
here they are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter, UninitializedParameter

from bo_act.activations.expressions import Expression, X
from bo_act.errors import ExpressionError, NetworkError, nearest

Learnable = Literal["layer", "channel"]
"""One scale for a layer, or one for each of its channels."""


@dataclass(frozen=True)
class Scaled:
    """A function with numbers in it: ``output * (f(x) - shift)``.

    Attributes:
        expression: f.
        factors: node of f → factor of its value; that of ``x`` scales the input.
        shift: subtracted from the value of f.
        output: multiplies the difference.
    """

    expression: Expression
    factors: Mapping[Expression, float] = field(default_factory=dict)
    shift: float = 0.0
    output: float = 1.0


class Scales(nn.Module):
    """Scales of the input, of inner operators if asked for, and of the output.

    Each is a parameter of one axis, as the weight of ``nn.PReLU``: one number, or one a channel.

    Attributes:
        names: of the parameters, in the order of evaluation.
        for_channels: whether there is one per channel, or one per layer.
        channel_dim: of the input, where channels are; None: 1 with four axes and more, else -1.
    """

    def __init__(self, operators: int, *, channel_dim: int | None = None) -> None:
        super().__init__()
        self.names = ("input", *(f"operator_{k + 1}" for k in range(operators)), "output")
        self.channel_dim = channel_dim
        self.for_channels = False
        self._make()

    def _make(self) -> None:
        for name in self.names:
            ones = torch.ones(1, device="cpu", dtype=torch.float32)
            self.register_parameter(name, Parameter(ones))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the scales in the dtype of x, with axes that fit it."""
        return [self._fitting(getattr(self, name), x) for name in self.names]

    def values(self) -> Tensor:
        """Return a copy: (channels, scales), one row for a layer."""
        scales = [getattr(self, name).detach().double().cpu() for name in self.names]
        return torch.stack(scales, dim=1)

    def _fitting(self, scale: Tensor, x: Tensor) -> Tensor:
        scale = scale.to(x.dtype)
        if not self.for_channels:
            return scale.reshape(()) if x.ndim == 0 else scale
        dim = self._dim(x)
        if not torch.jit.is_tracing() and x.shape[dim] != len(scale):  # type: ignore[attr-defined]
            raise NetworkError(
                f"learnable = 'channel': expected {len(scale)} channels in dimension {dim} of "
                f"an input of shape {tuple(x.shape)}; if channels are elsewhere, give channel_dim"
            )
        shape = [1] * x.ndim
        shape[dim] = -1
        return scale.view(shape)

    def _dim(self, x: Tensor) -> int:
        dim = self.channel_dim
        if dim is None:
            return 1 if x.ndim >= 4 else -1
        if not -x.ndim <= dim < x.ndim:
            raise NetworkError(
                f"channel_dim = {dim}: an input of shape {tuple(x.shape)} has no such dimension"
            )
        return dim


class LazyScales(LazyModuleMixin, Scales):
    """Scales for each channel, as many as the first input has."""

    cls_to_become = Scales

    def _make(self) -> None:
        self.for_channels = True
        where: Any = {"device": "cpu", "dtype": torch.float32}
        for name in self.names:
            lazy: Any = UninitializedParameter(**where)
            self.register_parameter(name, lazy)

    def initialize_parameters(self, x: Tensor) -> None:
        """Make as many as x has channels."""
        if x.ndim == 0:
            raise NetworkError("learnable = 'channel': expected an input with channels, got ()")
        channels = x.shape[self._dim(x)]
        for name in self.names:
            scale: Any = getattr(self, name)
            if isinstance(scale, UninitializedParameter):
                scale.materialize((channels,))
                with torch.no_grad():
                    scale.fill_(1.0)


def make_scales(
    learnable: Learnable | None, operators: int, *, channel_dim: int | None
) -> Scales | None:
    """Return fresh scales, or None if ``learnable`` is None.

    Raises:
        ExpressionError: ``learnable`` is unknown.
    """
    if learnable is None:
        return None
    if learnable not in get_args(Learnable):
        raise ExpressionError(
            f"learnable: expected 'layer', 'channel' or None, got {learnable!r:.40}"
            f"{nearest(str(learnable), get_args(Learnable))}"
        )
    kind = LazyScales if learnable == "channel" else Scales
    return kind(operators, channel_dim=channel_dim)


def distinct_nodes(expression: Expression) -> list[Expression]:
    """Return the operators of an expression, equal ones once, in the order of evaluation."""
    return [node for node in dict.fromkeys(expression.nodes()) if node.arguments]


def scaled(expression: Expression, row: Tensor, *, operators: bool) -> Scaled:
    """Return a function with the values of its scales: (scales,), input first, output last.

    Raises:
        ValueError: the number of scales is wrong.
    """
    numbers = [float(value) for value in row]
    inner = distinct_nodes(expression)[:-1] if operators else []
    if len(numbers) != len(inner) + 2:
        raise ValueError(f"expected {len(inner) + 2} scales of {expression}, got {len(numbers)}")
    return Scaled(
        expression,
        {X: numbers[0], **dict(zip(inner, numbers[1:-1], strict=True))},
        output=numbers[-1],
    )


def scale_parameters(network: nn.Module) -> Iterator[Parameter]:
    """Yield the scales of all activation functions of a network."""
    for module in network.modules():
        if isinstance(module, Scales):
            yield from module.parameters()


torch.serialization.add_safe_globals(
    [(cls, f"{__name__}.{cls.__name__}") for cls in (Scales, LazyScales)]
)

"""A function compiled to one kernel per pass, if there is a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bo_act.dependencies.torch_internals import is_transformed

Function = Callable[..., Tensor]

DEVICES = ("cpu", "cuda", "xpu", "mps")
"""Kinds of device that torch.compile generates code for."""


class Fused:
    """An elementwise function, compiled at its first call; eager if that fails.

    Compiled by torch.compile (inductor): Triton kernels on a GPU, C++ on a CPU. One compilation
    serves all shapes, because tensors are passed in memory order, with one axis. The backward pass
    recomputes from the input, so that no intermediate is saved and the output may be changed in
    place.

    Second derivatives, torch.func transforms, tracing and unusual tensors run operator by operator.

    Attributes:
        eager: the function.
        why_not: why it is not compiled, on one line; None if it is, or was not tried yet.
    """

    def __init__(self, eager: Function) -> None:
        self.eager = eager
        self.why_not: str | None = None
        self._compiled: list[Function] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate elementwise; values of the same shape, dtype and memory format."""
        if self.why_not is not None or _needs_operators(x):
            return self.eager(x)
        if x.is_contiguous():
            return self._flat(x.view(-1)).view(x.shape)
        # In memory order, such as channels last.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        inner = x.permute(order)
        back = sorted(range(x.ndim), key=order.__getitem__)
        return self._flat(inner.reshape(-1)).view(inner.shape).permute(back)

    def value(self, x: Tensor) -> Tensor:
        """Return values of x, (n,), outside the autograd graph."""
        with torch.no_grad():
            return self._run(0, x)

    def slope(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to x, both (n,), from that of the values."""
        twice = torch.is_grad_enabled()  # of a gradient
        if twice or torch.is_anomaly_enabled():
            with torch.enable_grad():
                value = self.eager(x)
                if not value.requires_grad:  # a constant
                    return torch.zeros_like(x)
                return torch.autograd.grad(value, x, gradient, create_graph=twice)[0]
        return self._run(1, x, gradient.contiguous())

    def _flat(self, x: Tensor) -> Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.value(x)
        y: Tensor = _Passes.apply(x, self)
        return y

    def _slope(self, x: Tensor, gradient: Tensor) -> Tensor:
        slope: Tensor = torch.func.vjp(self.eager, x)[1](gradient)[0]
        return slope

    def _run(self, number: int, *tensors: Tensor) -> Tensor:
        """Run the forward pass (0) or the backward pass (1); eager if compiling fails."""
        passes: tuple[Function, Function] = (self.eager, self._slope)
        if self.why_not is None:
            try:
                if self._compiled is None:
                    self._compiled = [torch.compile(_alone(f), dynamic=True) for f in passes]
                return self._compiled[number](*tensors)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways
                self.why_not = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return passes[number](*tensors)


class _Passes(torch.autograd.Function):
    """Both passes of a fused function; only the input is saved in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.fused = fused
        return fused.value(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.fused.slope(x, gradients[0]), None


def _needs_operators(x: Tensor) -> bool:
    """Tell whether a tracer or transform needs the single operators, or x is an unusual tensor."""
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch.is_anomaly_enabled()
        or is_transformed(x)
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.layout is not torch.strided
        or x.is_nested
        or x.device.type not in DEVICES
        or not x.is_floating_point()
        or x.numel() < 2  # sizes 0 and 1 would compile separately
        or forward_ad.unpack_dual(x).tangent is not None
    )


def _alone(eager: Function) -> Function:
    """Wrap a function so that torch.compile distinguishes it.

    torch caches a few compilations per code object, and functions of the same ``def`` share one.
    """

    def function(*tensors: Tensor) -> Tensor:
        return eager(*tensors)

    function.__code__ = function.__code__.replace()
    return function

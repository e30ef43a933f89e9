"""A function compiled to one kernel for each pass, where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class Fused:
    """An elementwise function, compiled when it is first called; eager where that fails.

    Compiled by torch.compile (inductor): Triton kernels on a GPU, C++ on a CPU. One compilation
    serves all shapes, because tensors are passed as they lie in memory, with one axis. The
    backward pass computes anew what it needs from the input, so that no intermediate is kept.

    Attributes:
        eager: the function.
        why_not: why it is not compiled, on one line; None where it is, or was not tried yet.
    """

    def __init__(self, eager: Function) -> None:
        self.eager = eager
        self.why_not: str | None = None
        self._compiled: Function | None = None
        self._tried: set[tuple[str, torch.dtype]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate elementwise; values of the same shape, dtype and memory format."""
        # Inside of a compiled network the outer compiler sees the operators themselves. Sizes 0
        # and 1 would be compiled apart.
        if self.why_not is not None or torch.compiler.is_compiling() or x.numel() < 2:
            return self.eager(x)
        try:
            return self._call(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in as many ways as it has parts
            self.why_not = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return self.eager(x)

    def _call(self, x: Tensor) -> Tensor:
        if self._compiled is None:
            self._compiled = torch.compile(_with_code_of_its_own(self.eager), dynamic=True)
        kind = (x.device.type, x.dtype)
        if kind not in self._tried:
            # Backward is compiled when it is first run, where nobody could fall back any more.
            with torch.enable_grad():
                sample = torch.linspace(0.1, 1.0, 64, device=x.device, dtype=x.dtype)
                self._compiled(sample.requires_grad_()).sum().backward()
            self._tried.add(kind)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            inner = x.permute(0, 2, 3, 1)
            return self._compiled(inner.reshape(-1)).view(inner.shape).permute(0, 3, 1, 2)
        return self._compiled(x.reshape(-1)).view(x.shape)


def _with_code_of_its_own(eager: Function) -> Function:
    """Wrap a function so that torch.compile tells it from others.

    What is compiled is kept by code object, a handful each, and functions made by the same
    ``def`` share one.
    """

    def function(x: Tensor) -> Tensor:
        return eager(x)

    function.__code__ = function.__code__.replace()
    return function

"""What torch.fx and torch.jit see of an activation module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy


def as_node(module: nn.Module, x: Proxy, function: Callable[..., Tensor], *options: Any) -> Any:
    """Put a module into a graph of torch.fx as one node, like the activation layers of torch.

    Args:
        module: one of the network that is traced.
        x: its input.
        function: called instead where the module is the network itself.
        *options: further arguments of that function.
    """
    tracer: Any = x.tracer
    if path := tracer.path_of_module(module):
        return tracer.create_proxy("call_module", path, (x,), {})
    return tracer.create_proxy("call_function", function, (x, *options), {})


def scripted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an elementwise function as TorchScript, for inputs of float32 and wider."""

    def alone(x: Tensor) -> Tensor:  # torch.jit traces no methods
        return function(x)

    sample = torch.ones(2, device="cpu", dtype=torch.float32, requires_grad=True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, who scripts is told
        traced: Callable[[Tensor], Tensor] = torch.jit.trace(alone, sample, check_trace=False)
    return traced

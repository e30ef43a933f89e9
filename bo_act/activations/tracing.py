"""What torch.fx and torch.jit see of an activation module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy


def node(module: nn.Module, x: Proxy, function: Callable[..., Tensor], *options: Any) -> Any:
    """Put a module into a graph of torch.fx as one node, like the activation layers of torch.

    Args:
        module: one of the network that is traced.
        x: its input.
        function: called instead where the module is the network, with x and ``options``.
    """
    path = x.tracer.path_of_module(module)
    if path:
        return x.tracer.create_proxy("call_module", path, (x,), {})
    return x.tracer.create_proxy("call_function", function, (x, *options), {})


def scripted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an elementwise function as TorchScript, for inputs of float32 and wider."""
    sample = torch.ones(2, device="cpu", dtype=torch.float32, requires_grad=True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, who scripts is told
        traced: Callable[[Tensor], Tensor] = torch.jit.trace(function, sample, check_trace=False)
    return traced

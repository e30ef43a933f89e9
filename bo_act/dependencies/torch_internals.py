"""Private parts of torch that bo-act relies on, in one place, so that an upgrade breaks here.

``tests/dependencies/test_torch_internals.py`` names each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as RunningNorm
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

__all__ = [
    "COMPILED",
    "OPTIMIZER_IMPORTS",
    "Dropout",
    "InstanceNorm",
    "RunningNorm",
    "children_of",
    "has_one_weight",
    "is_compiler_loaded",
    "is_transformed",
    "members_of",
    "set_child",
    "version_of",
    "without_torch_function",
]

COMPILED = "_orig_mod"
"""Name, in what ``torch.compile`` returns, of the module that was compiled."""

OPTIMIZER_IMPORTS = ("torch._dynamo",)
"""Modules that the first optimizer of a process imports, which takes a second."""


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return a module's children under all of their names; ``named_children`` gives only one."""
    return module._modules


def set_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Replace a child module."""
    module._modules[name] = child


def members_of(module: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Return a module's own attributes, children, parameters and buffers, None ones too."""
    return vars(module), module._modules, module._parameters, module._buffers


def has_one_weight(attention: nn.MultiheadAttention) -> bool:
    """Tell whether queries, keys and values share one projection matrix."""
    return bool(attention._qkv_same_embed_dim)


def version_of(tensor: Tensor) -> int:
    """Return a number that rises with every change in place."""
    return tensor._version


def is_transformed(tensor: Tensor) -> bool:
    """Tell whether ``torch.func`` or a dispatch mode handles a tensor."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or torch._C._len_torch_dispatch_stack() > 0


def is_compiler_loaded() -> bool:
    """Tell whether something may be compiled, without loading the compiler, which takes seconds."""
    return "torch._dynamo" in sys.modules


def without_torch_function() -> AbstractContextManager[None]:
    """Bypass ``__torch_function__`` of modes and subclasses inside."""
    return torch._C.DisableTorchFunction()

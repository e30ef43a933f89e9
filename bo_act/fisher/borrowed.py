"""A user's network, in any state, while its Fisher matrix is computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import nn

from bo_act.dependencies.torch_internals import (
    COMPILED,
    RunningNorm,
    children_of,
    is_compiler_loaded,
)
from bo_act.errors import FeatureError
from bo_act.fisher.calls import Inputs, tensors
from bo_act.fisher.layers.attention import AttentionTrace
from bo_act.fisher.options import Statistics
from bo_act.user_code.failures import is_of_in_place


def inside(network: nn.Module) -> nn.Module:
    """Return the original of a compiled or data-parallel network.

    Raises:
        FeatureError: its layers are hidden.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise FeatureError(
            "expected a network whose layers run one by one, got a torch.jit module; give the "
            "original module"
        )
    if not isinstance(network, nn.Module):
        raise FeatureError(
            f"expected a network, a torch.nn.Module, got {type(network).__name__}; instead of a "
            "compiled function give the network itself"
        )
    if COMPILED in children_of(network):
        return inside(network.get_submodule(COMPILED))
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return inside(network.module)
    return network


def named_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules with their names, without the prefixes of ``torch.compile``."""
    for name, module in network.named_modules():
        yield ".".join(part for part in name.split(".") if part != COMPILED), module


@contextmanager
def explained(network: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Replace torch's unclear errors by clear ones."""
    given = tensors(inputs)
    if any(tensor.is_meta for tensor in given):
        raise FeatureError("expected inputs with values, got tensors on the meta device")
    try:
        yield
    except RuntimeError as error:
        weights = [tensor for tensor in network.parameters() if tensor.is_floating_point()][:1]
        for tensor, weight in product(given, weights):
            other_dtype = tensor.is_floating_point() and tensor.dtype != weight.dtype
            if other_dtype or tensor.device != weight.device:
                raise FeatureError(
                    f"expected inputs of the network's dtype and on its device, {weight.dtype} on "
                    f"{weight.device}, got {tensor.dtype} on {tensor.device}"
                ) from error
        if not is_of_in_place(error):
            raise
        raise FeatureError(
            "the network changes a tensor in place that its gradients need, so there is no Fisher "
            "matrix: write x = x + y for x += y, and leave out inplace=True after functions that "
            "save their output, such as nn.ReLU and nn.Tanh"
        ) from error


@contextmanager
def borrowed(
    network: nn.Module,
    statistics: Statistics,
    attentions: Mapping[nn.MultiheadAttention, AttentionTrace],
) -> Iterator[None]:
    """Put a network into the mode described in ``kronecker_factors``, and back at the end.

    Args:
        network: any.
        statistics: ``batch`` or ``running``.
        attentions: attention modules, and their replacements meanwhile.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer)
        for module, _ in modes
        for name, buffer in module.named_buffers(recurse=False)
    ]
    parameters = [
        (module, name, parameter)
        for module, _ in modes
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_inference()
    ]
    _SLOWLY.begin()
    try:
        for module, name, parameter in parameters:
            setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
        for module, _ in modes:
            module.training = statistics == "batch" and isinstance(module, RunningNorm)
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())  # the network works on copies
        for attention, trace in attentions.items():
            attention.forward = trace.forward  # type: ignore[method-assign]
        yield
    finally:
        for attention in attentions:
            vars(attention).pop("forward", None)
        for module, name, tensor in [*buffers, *parameters]:
            setattr(module, name, tensor)
        for module, mode in modes:
            module.training = mode
        _SLOWLY.end()


class _Slowly:
    """Turns off compiled code and the fast path of transformer layers, which hide layers.

    Both switches are global to all threads: the first user turns them off, the last restores them.
    """

    def __init__(self) -> None:
        self.users = 0
        self.before = True
        self.stance: Any = None
        self.lock = threading.Lock()

    def begin(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
                if is_compiler_loaded():
                    self.stance = torch.compiler.set_stance("force_eager")
            self.users += 1

    def end(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                torch.backends.mha.set_fastpath_enabled(self.before)
                if self.stance is not None:
                    self.stance.__exit__(None, None, None)
                    self.stance = None


_SLOWLY = _Slowly()

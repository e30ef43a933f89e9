"""Networks with in-place changes, before and after an activation function.

The statement ``functional.relu(x, inplace=True)``, or ``self.relu(x)`` with
``nn.ReLU(inplace=True)``, changes ``x`` and discards the result. A replacement that left ``x``
unchanged would have no effect.

A network may change the output of an ``Activation`` in place, but not its input, which most
functions need for their slope. Networks that do so work only with ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.data.samples import Inputs, call, mapped
from bo_act.dependencies.torch_internals import version_of
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import NetworkError
from bo_act.fisher.calls import logits_of
from bo_act.user_code.failures import is_of_in_place

KEEP = ("swish(x)", "tanh(x)")
"""A function that keeps its input for the backward pass, and one that keeps its output."""


class Reads:
    """Finds places whose input is changed in place and read again, in one forward pass.

    Tensors are identified by their memory, so views count, too.

    Attributes:
        again: names of the places.
    """

    def __init__(self) -> None:
        self.again: set[str] = set()
        self._places: dict[int, set[str]] = {}
        # Hold it, so that no other tensor gets the same memory.
        self._changed: list[Tensor] = []

    def changed(self, name: str, x: Tensor) -> None:
        """Note that a place changes a tensor."""
        if x.numel() and name not in self.again:
            self._changed.append(x)
            self._places.setdefault(_memory(x), set()).add(name)

    def look(self, *values: Any) -> None:
        """Look for changed tensors among those being read."""
        if self._places:
            for tensor in _tensors(values):
                self.again |= self._places.pop(_memory(tensor), set())


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def is_in_place(name: str, options: dict[str, Any]) -> bool:
    """Tell whether a call of an activation function works in place."""
    return name.endswith("_") or bool(options.get("inplace"))


def store(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Write a function's values over its input, and return the input.

    The function gets a copy, because what it saves for the backward pass must not change.
    """
    return x.copy_(activation(x.clone()))


class Storing(nn.Module):
    """An in-place activation module."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed input."""
        return store(self.activation, x)


@plain_torch()
def check_gradients(
    build: Callable[[Callable[[], nn.Module]], nn.Module], inputs: Inputs, *, name: str
) -> None:
    """Refuse a network that changes a tensor in place that a function's gradient needs.

    Runs a forward and a backward pass in training mode. torch's global random state stays
    unchanged; other errors are left to the training.

    Args:
        build: called with ``activation``, returns a new network.
        inputs: some training samples.
        name: of the network, for messages.

    Raises:
        NetworkError: the message names the places.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    for text in KEEP:
        read: list[tuple[str, Tensor, int]] = []
        try:
            with torch.random.fork_rng(devices):
                network = build(partial(Activation, text)).train()
                _watch(network, read)
                outputs = call(network, mapped(inputs, lambda tensor: tensor.clone()))
                logits_of(outputs).sum().backward()
        except Exception as error:
            if not is_of_in_place(error):
                return
            sites = dict.fromkeys(site for site, x, before in read if version_of(x) != before)
            where = f"the function at {', '.join(sites)} has read" if sites else "is needed later"
            raise NetworkError(
                f"{name}: the network changes a tensor in place that {where}, so functions such "
                f"as {text} cannot be trained; there, write x = x + y for x += y, and leave out "
                "inplace=True"
            ) from error


def _watch(network: nn.Module, read: list[tuple[str, Tensor, int]]) -> None:
    """Record the inputs of a network's functions: place, tensor and the tensor's version."""
    for name, module in network.named_modules():
        if isinstance(module, Activation):
            module.register_forward_pre_hook(
                lambda _, args, name=name: read.extend((name, x, version_of(x)) for x in args)
            )

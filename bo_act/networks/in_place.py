"""Activation layers that work in place, in networks that read the changed tensor again.

``functional.relu(x, inplace=True)`` as a statement of its own, or ``self.relu(x)`` with
``nn.ReLU(inplace=True)``, changes ``x`` and lets its result go. A function in its place that leaves
``x`` as it was would be no part of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class Reads:
    """Finds the places whose input, changed in place, is read again, during one forward pass.

    A tensor is told by its memory, so that a view of it counts as well.

    Attributes:
        again: names of the places.
    """

    def __init__(self) -> None:
        self.again: set[str] = set()
        self._places: dict[int, set[str]] = {}
        # Kept, so that no other tensor gets the same memory.
        self._changed: list[Tensor] = []

    def changed(self, place: str, x: Tensor) -> None:
        """Note that a place changes a tensor."""
        if x.numel() and place not in self.again:
            self._changed.append(x)
            self._places.setdefault(_memory(x), set()).add(place)

    def look(self, *values: Any) -> None:
        """Look for such tensors in what is being read."""
        if self._places:
            for tensor in _tensors(values):
                self.again |= self._places.pop(_memory(tensor), set())


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def is_in_place(name: str, options: dict[str, Any]) -> bool:
    """Tell whether a call of an activation function works in place."""
    return name.endswith("_") or bool(options.get("inplace"))


def store(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Write a function's values over its input, and return that.

    The function gets a copy: what it keeps for the backward pass must stay as it is.
    """
    return x.copy_(activation(x.clone()))


class Storing(nn.Module):
    """An activation module that works in place."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, changed."""
        return store(self.activation, x)

"""What the untrained networks of many activation functions have in common on one batch.

All start from the same weights and see the same images, so whatever stands before the first
activation is the same in each of them. It is recognized by its inputs, number by number.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["InputFactorCache"]

Call = tuple[str, int]


class InputFactorCache:
    """Sums over a layer's inputs and their spectra, kept from network to network.

    Nothing is assumed of where the activations stand: the inputs of the first network's layers
    are kept, as far as the limit reaches, and dropped when another network's differ. Any number
    of threads may use it at a time.

    Args:
        limit: bytes of inputs that are kept.

    Attributes:
        checked: whether a network was found to be without randomness.
        solver: where eigenvalues are computed fastest.
        spectra: (k, p) eigenvalues of input factors, by layer.
    """

    def __init__(self, limit: int = 1 << 28) -> None:
        self.limit = limit
        self.checked = False
        self.solver: torch.device | None = None
        self.spectra: dict[str, Tensor] = {}
        self._kept: dict[Call, tuple[Tensor, Tensor]] = {}
        self._differ: set[Call] = set()
        self._lock = threading.Lock()

    def find(self, call: Call, x: Tensor) -> Tensor | None:
        """Return the sums that were offered for a call with equal inputs."""
        entry = self._kept.get(call)
        if entry is None:
            return None
        known, sums = entry
        if known.dtype == x.dtype and known.device == x.device and torch.equal(known, x):
            return sums
        with self._lock:
            if self._kept.pop(call, None) is not None:
                self.limit += known.numel() * known.element_size()
            self._differ.add(call)
        return None

    def offer(self, call: Call, x: Tensor, sums: Tensor) -> None:
        """Keep the sums of a call; ``sums`` is not changed by anyone from now on."""
        size = x.numel() * x.element_size()
        with self._lock:
            if call in self._kept or call in self._differ or size > self.limit:
                return
            self.limit -= size
            self._kept[call] = (x.clone(), sums)

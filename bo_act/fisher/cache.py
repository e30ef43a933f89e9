"""Input factors that the untrained networks of many functions share on one batch.

All networks have the same weights and images, so every layer before the first activation has the
same inputs. The cache recognizes it by comparing these number by number.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["InputFactorCache"]

Call = tuple[str, int]


class InputFactorCache:
    """Sums over a layer's inputs and their spectra, cached for all networks.

    The cache needs no knowledge of the activations' places: it stores the inputs of the first
    network's layers, up to the limit, and drops those that differ in another network. It is
    thread-safe.

    Args:
        limit: bytes of stored inputs.

    Attributes:
        checked: whether a network proved to be deterministic.
        solver: fastest device for eigenvalues.
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
        """Return the stored sums of a call with equal inputs."""
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
        """Store the sums of a call; ``sums`` must not change afterwards."""
        size = x.numel() * x.element_size()
        with self._lock:
            if call in self._kept or call in self._differ or size > self.limit:
                return
            self.limit -= size
            self._kept[call] = (x.clone(), sums)

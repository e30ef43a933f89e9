"""The interface of a set of samples for trainer, evaluation and features.

A sample is one input of a network (an image, a row of a table, a sequence of tokens, or several
tensors by name) with its target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bo_act.data.augmentation import Augmentation

Inputs = Tensor | dict[str, Tensor] | tuple[Tensor, ...]
"""A batch, as the network takes it: a tensor, ``network(**inputs)`` or ``network(*inputs)``."""


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs with each of their tensors changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(map(change, inputs))


def rows(inputs: Inputs, chosen: Tensor | slice) -> Inputs:
    """Return some samples of a batch."""
    return mapped(inputs, lambda tensor: tensor[chosen])


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return [*inputs.values()] if isinstance(inputs, Mapping) else [*inputs]


def call(network: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a network with a batch."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


def shown_shape(inputs: Inputs) -> str:
    """Return the shapes of inputs as text: ``(2, 1, 8, 8)``, ``{'ids': (2, 16)}``."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if isinstance(inputs, Mapping):
        return str({name: tuple(tensor.shape) for name, tensor in inputs.items()})
    return str(tuple(tuple(tensor.shape) for tensor in inputs))


class Samples(Protocol):
    """Inputs with their targets, in batches.

    Small sets are in memory as a whole (``SampleSet``); large ones are read as needed.
    """

    @property
    def targets(self) -> Tensor:
        """Targets of all samples, (n, ...), on the device.

        int64 classes (n,) or tokens (n, T), or float32 numbers.
        """

    def __len__(self) -> int:
        """Return the number of samples."""

    def to(self, device: torch.device | str) -> Samples:
        """Return the same samples, with batches on a device."""

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return some samples without augmentation.

        Args:
            indices: (b,) int64.

        Returns:
            inputs (b, ...) and targets (b, ...), on the device.
        """

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches of samples; the last one may be smaller.

        Args:
            batch_size: samples at a time.
            order: (m,) int64 indices of the samples; None yields all in order.
            draw: seed and epoch of random augmentation: independent of order and number of workers
                for single samples, and of earlier batches for mixing. None, or a set without
                augmentation, leaves the samples unchanged.

        Returns:
            inputs (b, ...) and targets (b, ...), for mixed images probabilities (b, classes)
            float32, on the device.
        """


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples in memory, on any device.

    Attributes:
        inputs: a tensor (n, ...), or several by name or in order; images are float32.
        targets: (n, ...), see ``Samples``.
        augmentation: of training batches of images.
    """

    inputs: Inputs
    targets: Tensor
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> SampleSet:
        """Return the same samples on a device."""
        inputs = mapped(self.inputs, lambda tensor: tensor.to(device))
        return SampleSet(inputs, self.targets.to(device), self.augmentation)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return some samples; see ``Samples``."""
        indices = indices.to(self.targets.device)
        return rows(self.inputs, indices), self.targets[indices]

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches of samples; see ``Samples``."""
        if draw is not None and self.augmentation is not None:
            order = torch.arange(len(self), device="cpu") if order is None else order.cpu()
            for chosen in order.split(batch_size):
                images, labels = self.take(chosen)
                yield self.augmentation(
                    cast(Tensor, images), labels, chosen, count=len(self), draw=draw
                )
            return
        if order is None:
            for start in range(0, len(self), batch_size):
                part = slice(start, start + batch_size)
                yield rows(self.inputs, part), self.targets[part]
            return
        for chosen in order.to(self.targets.device).split(batch_size):
            yield self.take(chosen)

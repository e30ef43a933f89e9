"""What trainer, evaluation and features ask of a set of images, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bo_act.data.augmentation import Augmentation


class Images(Protocol):
    """Images with their labels, given out in batches.

    Small sets lie in memory as a whole (``ImageSet``); large ones are read from files.
    """

    @property
    def labels(self) -> Tensor:
        """Classes of all images, (n,) int64, on the device."""

    def __len__(self) -> int:
        """Return the number of images."""

    def to(self, device: torch.device | str) -> Images:
        """Return the same images, with batches on a device."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return some images without augmentation, and their labels.

        Args:
            indices: (b,) int64.

        Returns:
            images (b, c, h, w) float32 and labels (b,) int64, on the device.
        """

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give out images in batches, the last one smaller where they do not come out even.

        Args:
            batch_size: images at a time.
            order: (m,) int64 indices of the images; None gives out all of them as they lie.
            draw: seed and epoch, from which random augmentation follows: for an image, the same
                whatever the order and the number of workers; for what mixes a batch, the same
                whatever batches came before. None leaves the images as they are, and so do sets
                without augmentation.

        Returns:
            images (b, c, h, w) float32, and labels: classes (b,) int64, or, where augmentation
            mixes images, probabilities (b, classes) float32. Both on the device.
        """


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory, on any device.

    Attributes:
        images: (n, c, h, w) float32.
        labels: (n,) int64.
        augmentation: changes batches that are drawn for training.
    """

    images: Tensor
    labels: Tensor
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.augmentation)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return some images and their labels; see ``Images``."""
        indices = indices.to(self.labels.device)
        return self.images[indices], self.labels[indices]

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give out images in batches; see ``Images``."""
        if draw is not None and self.augmentation is not None:
            order = torch.arange(len(self), device="cpu") if order is None else order.cpu()
            for chosen in order.split(batch_size):
                yield self.augmentation(*self.take(chosen), chosen, count=len(self), draw=draw)
            return
        if order is None:
            yield from zip(
                self.images.split(batch_size), self.labels.split(batch_size), strict=True
            )
            return
        for chosen in order.to(self.labels.device).split(batch_size):
            yield self.images[chosen], self.labels[chosen]

"""Random augmentation of training images, determined by seed and epoch.

Changes of an image are drawn for (seed, epoch, index of the image), independent of the order, the
batch and the reading worker. Mixing within a batch is drawn for (seed, epoch, index of the batch's
first image).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bo_act.specs import AugmentationSpec

Draw = tuple[int, int]
"""Seed and epoch."""


def seed_of(*numbers: int) -> int:
    """Return one seed for several numbers, each of which changes all its bits."""
    sequence = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Augmentation:
    """Flip, shift, cutout and mixing of standardized images in memory.

    Attributes:
        spec: the augmentation.
        num_classes: of the mixed labels.
    """

    spec: AugmentationSpec
    num_classes: int

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, count: int, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            images: (b, c, h, w), on any device.
            labels: (b,) int64.
            indices: (b,) int64 on the CPU: of the images in the set.
            count: images in the set.
            draw: seed and epoch.

        Returns:
            images of the same shape, and labels (b,) int64 or, mixed, (b, classes) float32.
        """
        if self.spec.flip or self.spec.shift:
            images = self._moved(images, indices, count, draw)
        if self.spec.cutout:
            images = self._cut(images, indices, count, draw)
        return mix(images, labels, self.spec, self.num_classes, (*draw, int(indices[0])))

    def _moved(self, images: Tensor, indices: Tensor, count: int, draw: Draw) -> Tensor:
        """Return images mirrored and shifted, with reflected borders."""
        height, width = images.shape[-2:]
        shift = self.spec.shift
        generator = torch.Generator().manual_seed(seed_of(*draw, 0))
        flips = torch.randint(0, 2, (count,), device="cpu", generator=generator)
        moves = torch.randint(-shift, shift + 1, (count, 2), device="cpu", generator=generator)
        if not self.spec.flip:
            flips = torch.zeros_like(flips)
        flip, move = flips[indices].to(images.device), moves[indices].to(images.device)
        rows = _reflected(torch.arange(height, device=images.device) + move[:, :1], height)
        columns = _reflected(torch.arange(width, device=images.device) + move[:, 1:], width)
        columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
        every = torch.arange(len(images), device=images.device)
        # Indices around a slice move the channels to the end.
        moved = images[every[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()

    def _cut(self, images: Tensor, indices: Tensor, count: int, draw: Draw) -> Tensor:
        """Return images with a square set to the mean, 0 (DeVries and Taylor 2017).

        The square's middle is any pixel, so it may reach over the border.
        """
        height, width = images.shape[-2:]
        generator = torch.Generator().manual_seed(seed_of(*draw, 1))
        places = torch.rand(count, 2, device="cpu", dtype=torch.float32, generator=generator)[
            indices
        ].to(images.device)
        tops = (places[:, :1] * height).long() - self.spec.cutout // 2
        lefts = (places[:, 1:] * width).long() - self.spec.cutout // 2
        rows = torch.arange(height, device=images.device) - tops
        columns = torch.arange(width, device=images.device) - lefts
        inside = [(line >= 0) & (line < self.spec.cutout) for line in (rows, columns)]
        hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(hidden, 0.0)


def _reflected(places: Tensor, length: int) -> Tensor:
    """Reflect places into 0 ... length - 1, without repeating the outermost pixel."""
    places = places.abs()
    return torch.where(places >= length, 2 * (length - 1) - places, places)


def mix(
    images: Tensor,
    labels: Tensor,
    spec: AugmentationSpec,
    num_classes: int,
    key: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it in the batch, if ``spec`` says so.

    By mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019); if both are on, a coin decides for
    each batch.

    Args:
        images: (b, c, h, w).
        labels: (b,) int64.
        spec: Beta parameters of both; 0 is off.
        num_classes: of the labels.
        key: seed, epoch and index of the first image.

    Returns:
        images, and labels: unchanged, or probabilities (b, classes) float32.
    """
    if not spec.mixup and not spec.cutmix:
        return images, labels
    random = np.random.default_rng(np.random.SeedSequence([number % 2**64 for number in key]))
    coin = random.random()
    mixup, cutmix = (random.beta(alpha, alpha) if alpha else 0.0 for alpha in spec.mixing)
    others = images.roll(1, 0)
    if spec.mixup and (not spec.cutmix or coin < 0.5):
        share = float(mixup)
        images = share * images + (1 - share) * others
    else:
        height, width = images.shape[-2:]
        row, column = random.integers(height), random.integers(width)
        half = np.sqrt(1 - cutmix) / 2
        top, bottom = (int(np.clip(row + sign * half * height, 0, height)) for sign in (-1, 1))
        left, right = (int(np.clip(column + sign * half * width, 0, width)) for sign in (-1, 1))
        images = images.clone()
        images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    hot = functional.one_hot(labels, num_classes).float()
    return images, share * hot + (1 - share) * hot.roll(1, 0)

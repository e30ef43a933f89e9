"""Which images are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import DataError
from bo_act.specs import DataSpec


def split(labels: Tensor, spec: DataSpec, default: int) -> tuple[Tensor, Tensor]:
    """Split the images that are not test images; the same spec always gives the same split.

    Args:
        labels: (n,) int64.
        spec: how many, and the seed.
        default: validation images where the spec gives no number.

    Returns:
        indices of training and of validation images, ascending.

    Raises:
        DataError: no training image would be left, or those of one class alone, or no validation
            image.
    """
    held_out = default if spec.validation is None else spec.validation
    if held_out >= len(labels):
        raise DataError(
            f"data.validation: expected fewer than the {len(labels)} images of {spec.name!r} "
            f"that are not test images, got {held_out}; choose a smaller number"
        )
    if not held_out:
        raise DataError(
            f"data.validation: {spec.name!r} has {len(labels)} images that are not test images, "
            "too few to hold a tenth of them out; choose how many"
        )
    found = labels.unique().tolist()
    if len(found) < 2:
        raise DataError(
            f"{spec.name!r}: expected images of at least two classes, got "
            f"{f'class {found[0]} alone' if found else 'no image'}"
        )
    generator = torch.Generator().manual_seed(spec.seed)
    validation = stratified_sample(labels, held_out, generator)
    rest = others(len(labels), validation)
    if spec.train is not None and spec.train < len(rest):
        rest = rest[stratified_sample(labels[rest], spec.train, generator)]
    if len(rest) > 1 and len(labels[rest].unique()) < 2:
        raise DataError(
            f"data.train: the training images ({len(rest)}) that are left of {spec.name!r} are all "
            "of one class; choose more"
        )
    return rest, validation


def stratified_sample(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose images at random so that each class keeps its share.

    Args:
        labels: (n,) int64.
        count: how many to choose, at most n.
        generator: source of randomness, on the CPU.

    Returns:
        indices (count,) int64, ascending. Each class has its exact share, rounded up for the
        classes with the largest remainders.
    """
    classes, sizes = labels.unique(return_counts=True)
    quotas = count * sizes // len(labels)
    remainders = count * sizes % len(labels)
    missing = count - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    order = torch.randperm(len(labels), device="cpu", generator=generator)
    chosen = [
        order[labels[order] == label][:quota]
        for label, quota in zip(classes.tolist(), quotas.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values


def others(count: int, chosen: Tensor) -> Tensor:
    """Return the ascending indices below ``count`` that were not chosen."""
    left = torch.ones(count, device="cpu", dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().squeeze(1)

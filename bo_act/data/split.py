"""Choosing held-out samples."""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import DataError
from bo_act.specs import DataSpec


def split(
    targets: Tensor,
    spec: DataSpec,
    default: int,
    *,
    what: str = "images",
    stratified: bool = True,
    in_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Split the samples that are not test samples; the same spec always gives the same split.

    Args:
        targets: (n, ...); classes (n,) int64 if stratified.
        spec: number and seed.
        default: validation samples if the spec has no number.
        what: name of the samples, for errors.
        stratified: whether each class keeps its share.
        in_order: whether the last samples are held out, instead of any.

    Returns:
        indices of training and of validation samples, ascending.

    Raises:
        DataError: there would be no training samples, only one class of them, or no validation
            samples.
    """
    count = len(targets)
    held_out = default if spec.validation is None else spec.validation
    if held_out >= count:
        raise DataError(
            f"data.validation: expected fewer than the {count} {what} of {spec.name!r} outside "
            f"the test set, got {held_out}; choose a smaller number"
        )
    if not held_out:
        raise DataError(
            f"data.validation: {spec.name!r} has {count} {what} outside the test set, too few to "
            "hold out a tenth; choose a number"
        )
    strata = targets if stratified else torch.zeros(count, device="cpu", dtype=torch.int64)
    labels = strata.unique().tolist()
    if stratified and len(labels) < 2:
        raise DataError(
            f"{spec.name!r}: expected {what} of at least two classes, got "
            f"{f'class {labels[0]} alone' if labels else 'no image'}"
        )
    generator = torch.Generator().manual_seed(spec.seed)
    if in_order:
        validation = torch.arange(count - held_out, count, device="cpu")
    else:
        validation = stratified_sample(strata, held_out, generator)
    rest = others(count, validation)
    if spec.train is not None and spec.train < len(rest):
        rest = rest[stratified_sample(strata[rest], spec.train, generator)]
    if stratified and len(rest) > 1 and len(strata[rest].unique()) < 2:
        raise DataError(
            f"data.train: the training {what} ({len(rest)}) of {spec.name!r} are all of one "
            "class; choose more"
        )
    return rest, validation


def stratified_sample(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose samples at random, stratified by class.

    Args:
        labels: (n,) int64.
        count: number of samples, at most n.
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

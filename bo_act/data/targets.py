"""Kinds of targets of a data set, and so of a network's outputs.

Symbols, with shapes:

    N        samples
    T        tokens of a sample
    k        numbers, or labels that are 0 or 1, of a sample
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bo_act.errors import DataError

__all__ = ["IGNORED", "LOSSES", "Kind", "LossName", "as_targets", "is_tokens"]

Kind = Literal["classes", "tokens", "labels", "numbers"]
"""``classes``: whole numbers (N,); ``tokens``: whole numbers (N, T); ``labels``: zeros and ones
(N,) or (N, k), each with a probability of its own; ``numbers``: (N,) or (N, k, ...).
"""

LossName = Literal["auto", "cross_entropy", "binary_cross_entropy", "mse", "mae"]

LOSSES: dict[Kind, tuple[LossName, ...]] = {
    "classes": ("cross_entropy",),
    "tokens": ("cross_entropy",),
    "labels": ("binary_cross_entropy",),
    "numbers": ("mse", "mae"),
}
"""Losses that fit each kind of targets, the usual one first."""

IGNORED = -100
"""The target of a token that has no loss, as in ``nn.CrossEntropyLoss``."""


def is_tokens(inputs: Any) -> bool:
    """Tell whether inputs are sequences of tokens: whole numbers (n, T)."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.int64 and inputs.ndim == 2


def as_targets(
    targets: Tensor, loss: LossName, *, tokens: tuple[int, ...] | None, count: int, where: str
) -> tuple[Tensor, Kind]:
    """Return targets for training, and their kind.

    Args:
        targets: (N, ...) of any dtype.
        loss: of the study file; ``auto`` decides by the targets: whole numbers are classes (N,) or
            tokens (N, T), floating-point ones are numbers.
        tokens: shape of the inputs, if they are tokens.
        count: N.
        where: prefix of errors.

    Returns:
        int64 classes or tokens, or float32 labels or numbers.

    Raises:
        DataError: they have another form.
    """
    shape = tuple(targets.shape)
    came = f"got {targets.dtype} of the shape {shape}"
    if targets.ndim == 0 or shape[0] != count:
        raise DataError(f"{where}: expected {count} labels or other targets, one per input, {came}")
    if targets.is_complex():
        raise DataError(f"{where}: expected real numbers as targets, {came}")
    if loss == "auto":
        loss = "mse" if targets.is_floating_point() else "cross_entropy"
    if loss == "binary_cross_entropy":
        if targets.ndim > 2 or not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError(
                f"{where}: expected labels of shape ({count},) or ({count}, k) of zeros and ones, "
                f"as training.loss = {loss!r} needs them, {came}{_range(targets)}"
            )
        return targets.float(), "labels"
    if loss != "cross_entropy":
        if not bool(targets.isfinite().all()) or not targets.numel():
            unknown = int((~targets.isfinite()).sum())
            raise DataError(
                f"{where}: expected finite targets, {came}, {unknown} of them not finite"
            )
        return targets.float(), "numbers"
    if targets.is_floating_point():
        raise DataError(
            f"{where}: expected whole numbers as labels, as training.loss = {loss!r} needs "
            f"them, {came}"
        )
    targets = targets.long()
    if targets.ndim == 1:
        if targets.numel() and int(targets.min()) < 0:
            raise DataError(
                f"{where}: expected {count} labels, whole numbers from 0, {came}{_range(targets)}"
            )
        return targets.contiguous(), "classes"
    if targets.ndim > 2 or (shape[1] == 1 and tokens != shape) or not targets.numel():
        hint = f"; labels in one column need the shape ({count},)" if shape[1:] == (1,) else ""
        raise DataError(
            f"{where}: expected labels of shape ({count},), or tokens ({count}, T), {came}{hint}"
        )
    counted = targets != IGNORED
    if not bool(counted.any()) or int(targets[counted].min()) < 0:
        raise DataError(
            f"{where}: expected whole numbers from 0 as tokens ({IGNORED} for no loss), "
            f"{came}{_range(targets)}"
        )
    return targets.contiguous(), "tokens"


def _range(targets: Tensor) -> str:
    if not targets.numel():
        return ""
    return f", from {targets.min().item():.4g} to {targets.max().item():.4g}"

"""A data set before the split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from bo_act.data.samples import Inputs

Part = tuple[Inputs, Tensor]
"""Inputs (n, ...) and targets (n, ...); images are (n, c, h, w), uint8 or float32."""


@dataclass(frozen=True)
class Source:
    """A data set before the split.

    Attributes:
        train, test: readers of the two parts.
        white: value of a white pixel in images of whole numbers.
        classes: their number, or the size of the vocabulary; None counts them.
        validation: default number of validation samples; None is a tenth.
        standardized: the data set's default of ``DataSpec.standardize``.
        in_order: samples form a sequence, so the last ones are held out.
    """

    train: Callable[[], Part | Dataset[Any]]
    test: Callable[[], Part | Dataset[Any]]
    white: int = 255
    classes: int | None = None
    validation: int | None = None
    standardized: str = "none"
    in_order: bool = False

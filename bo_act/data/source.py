"""A data set as it is read, before it is split."""

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
    """A data set before it is split.

    Attributes:
        train, test: read the samples of a part.
        white: value of the brightest pixel of images as whole numbers.
        classes: their number, or that of the tokens of the vocabulary; None counts them.
        validation: default number of validation samples; None is a tenth.
        standardized: what the data set says of ``DataSpec.standardize``.
        in_order: samples follow one another, so that the last ones are held out.
    """

    train: Callable[[], Part | Dataset[Any]]
    test: Callable[[], Part | Dataset[Any]]
    white: int = 255
    classes: int | None = None
    validation: int | None = None
    standardized: str = "none"
    in_order: bool = False

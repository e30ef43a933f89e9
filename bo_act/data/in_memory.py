"""Scaling and standardizing samples for networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from bo_act.data.datasets import as_images, looks_like_images
from bo_act.data.samples import Inputs, SampleSet, mapped, tensors
from bo_act.data.source import Source
from bo_act.data.targets import Kind
from bo_act.errors import DataError
from bo_act.specs import DataSpec

SIDES = range(2, 257)  # one pixel is not an image; beyond 256, padded images fill the memory

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transform:
    """The transform of all parts of a data set in memory, fitted to the training part.

    Attributes:
        scaled: from inputs, and a prefix of errors, to inputs for networks.
        inputs: standardize each input.
        targets: standardizes targets.
    """

    scaled: Callable[[Inputs, str], Inputs]
    inputs: tuple[Change, ...]
    targets: Change

    def __call__(self, inputs: Inputs, targets: Tensor, where: str) -> SampleSet:
        """Return a part of the data set, ready for training."""
        changes = iter(self.inputs)

        def standardized(tensor: Tensor) -> Tensor:
            return next(changes)(tensor)

        ready = mapped(self.scaled(inputs, where), standardized)
        return SampleSet(ready, self.targets(targets))


def side_of(spec: DataSpec, inputs: Inputs) -> int | None:
    """Return the height and width of images, None for other inputs.

    Raises:
        DataError: the size does not fit the images.
    """
    if not looks_like_images(inputs):
        if spec.image_size is not None:
            raise DataError(
                f"data.image_size needs square images (n, c, h, w), but {spec.name!r} has none; "
                "leave it out"
            )
        return None
    pixels = cast(Tensor, inputs).shape[-1]
    side = pixels if spec.image_size is None else spec.image_size
    if side not in SIDES:
        raise DataError(
            f"data.image_size: expected {SIDES[0]} to {SIDES[-1]} pixels, got {side}; "
            f"leave it out to keep the {pixels} pixels of {spec.name!r}"
        )
    return side


def fitted(
    spec: DataSpec,
    source: Source,
    inputs: Inputs,
    targets: Tensor,
    *,
    side: int | None,
    kind: Kind,
) -> Transform:
    """Return the transform of all parts, fitted to the training samples.

    Args:
        spec: of the data set.
        source: of the data set.
        inputs: of the training samples, as read.
        targets: of the training samples.
        side: of images; None for other inputs.
        kind: of the targets.

    Raises:
        DataError: there is nothing to standardize.
    """
    wanted = source.standardized if spec.standardize == "auto" else spec.standardize
    if side is not None and spec.standardize == "auto":
        wanted = "inputs"
    if wanted in ("targets", "both") and kind != "numbers":
        raise DataError(
            f"data.standardize = {wanted!r}: the targets of {spec.name!r} are {kind}, not numbers; "
            "choose 'inputs' or 'none'"
        )
    any_numbers = spec.standardize != "auto"
    scaled = partial(_scaled, side=side, white=source.white, any_numbers=any_numbers)
    plain = scaled(inputs, spec.name)
    changes: list[Change] = [_unchanged for _ in tensors(plain)]
    if wanted in ("inputs", "both"):
        if not any(tensor.is_floating_point() for tensor in tensors(plain)):
            raise DataError(
                f"data.standardize = {wanted!r}: the inputs of {spec.name!r} are not "
                "floating-point numbers; leave it out"
            )
        changes = [
            _standardization(tensor, images=side is not None)
            if tensor.is_floating_point()
            else _unchanged
            for tensor in tensors(plain)
        ]
    of_targets = _standardization(targets) if wanted in ("targets", "both") else _unchanged
    return Transform(scaled, tuple(changes), of_targets)


def _unchanged(values: Tensor) -> Tensor:
    return values


def _scaled(
    inputs: Inputs, where: str, *, side: int | None, white: int, any_numbers: bool
) -> Inputs:
    """Return images in [0, 1], average-pooled or padded with black; other inputs unchanged."""
    if side is None:
        for tensor in tensors(inputs):
            unknown = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
            if unknown:
                raise DataError(f"{where}: expected finite inputs, got {unknown} not finite")
        return inputs
    images = cast(Tensor, inputs)
    if images.dtype != torch.uint8:
        images = images.float()
    images = images.contiguous() if any_numbers else as_images(images, where)
    images = images.float() / white if images.dtype == torch.uint8 else images
    missing = side - images.shape[-1]
    if missing < 0:
        return functional.adaptive_avg_pool2d(images, side)
    before, after = missing // 2, missing - missing // 2
    return functional.pad(images, (before, after, before, after))


def _standardization(values: Tensor, *, images: bool = False) -> Change:
    """Return the map to mean 0 and standard deviation 1 of each channel or column.

    Args:
        values: (n, c, h, w) images, or (n, ...) numbers with columns in the last axis.
        images: whether they are images; images of a single gray are an error, constant columns
            become 0.
    """
    if values.ndim == 1:
        values = values[:, None]
    columns = values.double().transpose(0, 1 if images else -1).flatten(1)
    deviation, mean = torch.std_mean(columns, dim=1, correction=0)
    if images and not deviation.all():
        raise DataError(
            "all training images have the same gray value, so there is nothing to learn"
        )
    deviation = torch.where(deviation > 0, deviation, 1.0)
    # Rounded, so that the order of summation on another machine does not change the digest.
    scale, shift = (
        torch.tensor(
            [round(x, 6) if images else float(f"{x:.6g}") for x in row.tolist()],
            device="cpu",
            dtype=torch.float32,
        )
        for row in (deviation, mean)
    )
    if images:
        scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
    return lambda values: (values - shift) / scale

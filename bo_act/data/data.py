"""A data set, ready for training, and its facts for networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bo_act.data.samples import Inputs, Samples, mapped, tensors
from bo_act.data.targets import Kind
from bo_act.errors import DataError

_EXAMPLE = 8  # samples for building a network


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready for training.

    Attributes:
        name: of the data set.
        train: training samples. Images in memory are standardized by their own mean and standard
            deviation in each channel; for other inputs see ``DataSpec.standardize``.
        validation: validation samples, under the same transform.
        facts: for ``build``, by name: of images
            ``in_channels`` and ``image_size`` (pixels, height and width), of tokens (n, T)
            ``vocabulary`` and ``context`` (T), of other tensors ``in_features`` (numbers of a
            sample) and ``input_shape`` (without n; by name if there are several); of classes
            ``num_classes``; and always ``out_features``, the network's outputs.
        digest: sha256 (hexadecimal) of the training and validation samples; of images in folders,
            of their names and sizes; of a ``Dataset``, of its targets and some samples.
        kind: of the targets. test_loader: loads the test samples, under the same transform.
    """

    name: str
    train: Samples = field(repr=False)
    validation: Samples = field(repr=False)
    facts: Mapping[str, Any]
    digest: str
    kind: Kind = "classes"
    test_loader: Callable[[], Samples] | None = field(default=None, repr=False)

    def load_test(self) -> Samples:
        """Load the test samples; call it once, at the very end.

        Raises:
            DataError: there are none, or their files are gone.
        """
        if self.test_loader is None:
            raise DataError(f"data set {self.name!r} has no test {self.what}")
        return self.test_loader()

    @property
    def of_images(self) -> bool:
        """Whether the inputs are square images (n, c, h, w)."""
        return "in_channels" in self.facts

    @property
    def what(self) -> str:
        """Name of the samples."""
        return "images" if self.of_images else "samples"

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            DataError: the targets are not classes.
        """
        if "num_classes" not in self.facts:
            raise DataError(f"the targets of {self.name!r} are {self.kind}, not classes")
        return int(self.facts["num_classes"])

    @cached_property
    def example(self) -> Inputs:
        """Some inputs on the CPU, for shapes and dtypes; images are black."""
        if self.of_images:
            side = self.facts["image_size"]
            shape = (2, self.facts["in_channels"], side, side)
            return torch.zeros(shape, device="cpu", dtype=torch.float32)
        inputs, _ = self.train.take(torch.arange(min(_EXAMPLE, len(self.train)), device="cpu"))
        return mapped(inputs, lambda tensor: tensor.cpu())

    def worst(self, metric: str) -> float | None:
        """Return the value of a diverged training: that of guessing, if known.

        Args:
            metric: a key of ``METRICS``.
        """
        outputs = self.facts["out_features"]
        if metric in ("accuracy", "balanced_accuracy"):
            return 0.5 if self.kind == "labels" else 1 / outputs
        if metric == "mse" and self.kind == "numbers":  # of predicting the mean
            train, validation = (
                part.targets.double().cpu() for part in (self.train, self.validation)
            )
            return float((validation - train.mean(0)).square().mean())
        if metric == "log_loss":
            return math.log(2 if self.kind == "labels" else outputs)
        known = {"auroc": 0.5, "r2": 0.0, "bits_per_token": math.log2(outputs)}
        return known.get(metric, float(outputs) if metric == "perplexity" else None)


def facts_of(
    inputs: Inputs, targets: Tensor, kind: Kind, *, classes: int | None, side: int | None = None
) -> dict[str, Any]:
    """Return the facts of a data set; see ``Data``.

    Args:
        inputs: some samples, or all if they are tokens.
        targets: of all samples.
        kind: of the targets.
        classes: their number, or the size of the vocabulary, if known.
        side: of the images, if the inputs are images.
    """
    facts: dict[str, Any] = {}
    first = tensors(inputs)[0]
    tokens = next((x for x in tensors(inputs) if x.dtype == torch.int64 and x.ndim == 2), None)
    if side is not None:
        facts = {"in_channels": first.shape[1], "image_size": side}
    elif tokens is not None:
        most = [int(tokens.max()), int(targets.max()) if kind == "tokens" else 0]
        facts = {"vocabulary": classes or max(most) + 1, "context": tokens.shape[1]}
    if kind == "classes":
        outputs = facts["num_classes"] = classes or int(targets.max()) + 1
    elif kind == "tokens":
        outputs = facts.get("vocabulary") or classes or int(targets.max()) + 1
    else:
        outputs = math.prod(targets.shape[1:])
    facts["out_features"] = outputs
    if side is not None:
        return facts | {"in_features": first.shape[1] * side**2}
    if isinstance(inputs, Tensor):
        if tokens is None:
            facts["in_features"] = math.prod(first.shape[1:])
        return facts | {"input_shape": tuple(first.shape[1:])}
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return facts | {"input_shape": {name: tuple(tensor.shape[1:]) for name, tensor in named}}


FACTS = (
    "in_channels", "image_size", "num_classes", "in_features", "out_features", "input_shape",
    "vocabulary", "context",
)  # fmt: skip
"""All facts that there are of some data set."""

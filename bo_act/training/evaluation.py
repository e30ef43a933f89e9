"""Measuring a network on samples, and telling whether it fits them.

Symbols, with shapes: B samples of a batch, C classes, V tokens of the vocabulary, k labels or
numbers of a sample.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bo_act.data.data import Data
from bo_act.data.samples import Samples, call, shown_shape
from bo_act.data.targets import Kind
from bo_act.errors import NetworkError, SpecError
from bo_act.failures import USERS, is_machines, one_line
from bo_act.torch_state import plain_torch
from bo_act.training.losses import Loss, check_outputs, mean_loss, outputs_of, terms
from bo_act.training.optimization import Precision, autocast

EVALUATION_BATCH = 512  # without gradients, larger batches than in training fit

FITTING: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "auroc"),
    "labels": ("accuracy", "balanced_accuracy", "auroc"),
    "tokens": ("bits_per_token", "perplexity", "accuracy"),
    "numbers": ("mse", "r2"),
}
"""Metrics that fit each kind of targets, the usual one first."""


def metric_name(data: Data, metric: str | None) -> str:
    """Return the metric that is measured on a data set; None is the usual one.

    Raises:
        SpecError: it does not fit the targets.
    """
    fit = FITTING[data.kind]
    if metric is None:
        return fit[0]
    if metric not in fit:
        raise SpecError(
            f"metric.name: {metric!r} does not fit the targets of {data.name!r}, which are "
            f"{data.kind}; those that do: {', '.join(fit)}"
        )
    if metric == "auroc":
        y = data.validation.targets
        if y.dim() == 1:
            y = y[:, None]
        if not bool((y.amin(0) < y.amax(0)).any()):
            raise SpecError(
                f"metric.name: 'auroc' needs validation {data.what} of both classes, and those of "
                f"{data.name!r} are all of one; choose more of them"
            )
    return metric


def evaluate(
    network: nn.Module,
    samples: Samples,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
    metric: str = "accuracy",
    loss: Loss = "cross_entropy",
) -> float:
    """Return the value of a metric, such as accuracy, a fraction; see ``measure``."""
    return measure(
        network,
        samples,
        batch_size=batch_size,
        device=device,
        precision=precision,
        metric=metric,
        loss=loss,
    )[0]


def measure(
    network: nn.Module,
    samples: Samples,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
    metric: str = "accuracy",
    loss: Loss = "cross_entropy",
) -> tuple[float, float]:
    """Return a metric and the mean loss of a network, which is put into evaluation mode.

    Args:
        network: from inputs (B, ...) to logits (B, C) or (B, T, V), or to (B, k).
        samples: to measure it on; moved to the device if they are elsewhere.
        batch_size: samples at a time.
        device: where to compute.
        precision: as in ``TrainingSpec``.
        metric: a key of ``METRICS`` that fits the targets, see ``FITTING``.
        loss: of the training.

    Returns:
        Value, as it is stored (accuracy is a fraction), and the loss, without label smoothing;
        cross-entropy in nats. Either may be infinite or NaN where the network's outputs are, and
        AUROC is NaN where all samples are of one class.
    """
    device = torch.device(device)
    network.to(device)
    samples = samples.to(device)
    was_training = network.training
    network.eval()
    # Sums of float32 losses over a whole data set would lose digits.
    wide = torch.float32 if device.type == "mps" else torch.float64
    score = _SCORES[metric](samples.targets, loss, wide)
    total = torch.zeros((), device=device, dtype=wide)
    with plain_torch(device), torch.no_grad(), autocast(device, precision):
        for inputs, targets in samples.batches(batch_size):
            outputs = outputs_of(call(network, inputs)).float()
            total += mean_loss(outputs, targets, loss, reduction="sum")
            if loss != "cross_entropy":
                outputs = outputs.reshape(targets.shape)
            score.add(outputs, targets)
    network.train(was_training)
    mean = float(total) / int(terms(samples.targets, loss))
    return score.value(mean), mean


def per_example(
    network: nn.Module,
    samples: Samples,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
    metric: str = "accuracy",
    loss: Loss = "cross_entropy",
) -> NDArray[Any] | None:
    """Return what each of n samples adds to a metric that is their mean, (n,); see ``measure``.

    Returns:
        Of accuracy right or wrong, or the share of a sample's labels or tokens; of the mean squared
        error each one's. None of another metric, and where samples have tokens that do not count.
    """
    ignored = loss == "cross_entropy" and bool((samples.targets < 0).any())
    if metric not in ("accuracy", "mse") or ignored:
        return None
    device = torch.device(device)
    network.to(device)
    samples = samples.to(device)
    was_training = network.training
    network.eval()
    found = []
    with plain_torch(device), torch.no_grad(), autocast(device, precision):
        for inputs, targets in samples.batches(batch_size):
            outputs = outputs_of(call(network, inputs)).float()
            if metric == "mse":
                each = (outputs.reshape(targets.shape) - targets).square()
            elif loss == "cross_entropy":
                each = outputs.argmax(-1) == targets
            else:
                each = (outputs.reshape(targets.shape) > 0) == targets.bool()
            found.append((each if each.dim() == 1 else each.float().flatten(1).mean(1)).cpu())
    network.train(was_training)
    values: NDArray[Any] = torch.cat(found).numpy()
    return values


def check_network(network: nn.Module, data: Data, samples: Samples, precision: Precision) -> None:
    """Pass a few samples through, so that a misfit is named as such.

    Args:
        network: on the device of the samples.
        data: that they are of.
        samples: of the training.
        precision: as in ``TrainingSpec``.

    Raises:
        NetworkError: the network does not map the inputs to outputs as the targets need them.
    """
    few, targets = samples.take(torch.arange(min(2, len(samples)), device="cpu"))
    network.eval()
    try:
        with torch.no_grad(), autocast(targets.device, precision):
            found = call(network, few)
    except USERS as error:
        if is_machines(error):
            raise
        what = "images" if data.of_images else "inputs"
        raise NetworkError(
            f"the network fails on {what} of shape {shown_shape(few)}: {one_line(error)}"
        ) from error
    check_outputs(found, few, targets, data)


# --- the metrics ----------------------------------------------------------------------------------


class _Score(Protocol):
    """A metric, of one batch after the other.

    Args:
        targets: of all samples that are to be measured on.
        loss: of the training, which tells labels from classes.
        wide: dtype of sums.
    """

    def __init__(self, targets: Tensor, loss: Loss, wide: torch.dtype) -> None: ...

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take note of a batch."""

    def value(self, loss: float) -> float:
        """Return the metric of all batches, whose mean loss this is."""


class _Accuracy:
    """Share of the classes, tokens or labels that the largest output, or its sign, tells."""

    def __init__(self, targets: Tensor, loss: Loss, _: torch.dtype) -> None:
        self.count = targets.numel() if loss != "cross_entropy" else int(terms(targets, loss))
        self.labels = loss != "cross_entropy"
        self.correct = torch.zeros((), dtype=torch.int64, device=targets.device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        found = (outputs > 0).to(targets.dtype) if self.labels else outputs.argmax(-1)
        self.correct += (found == targets).sum()  # an ignored token is none of the vocabulary

    def value(self, _: float) -> float:
        return int(self.correct) / self.count


class _Recalls:
    """Mean share of right answers over the classes there are; of labels, over 0 and 1 of each."""

    def __init__(self, _: Tensor, loss: Loss, wide: torch.dtype) -> None:
        self.labels = loss != "cross_entropy"
        self.wide = wide
        self.right: Tensor | None = None
        self.all: Tensor | None = None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        if self.labels:
            y = targets.flatten(1) if targets.dim() > 1 else targets[:, None]
            found = (outputs > 0).to(y.dtype).reshape(y.shape)
            true = torch.stack([1 - y, y])  # (2, B, k)
        else:
            y, found = targets, outputs.argmax(1)
            true = functional.one_hot(y, outputs.shape[1]).T  # (C, B)
        right, every = (true * (found == y)).sum(1, dtype=self.wide), true.sum(1, dtype=self.wide)
        self.right = right if self.right is None else self.right + right
        self.all = every if self.all is None else self.all + every

    def value(self, _: float) -> float:
        if self.right is None or self.all is None:
            return math.nan
        there = self.all > 0
        shares = torch.where(there, self.right / self.all.clamp(min=1), 0.0)
        return float((shares.sum(0) / there.sum(0)).mean())


class _Auroc:
    """Area under the receiver operating characteristic (Hanley and McNeil 1982), ties as halves.

    Of two classes; of several, the mean over each against the others; of labels, over these.
    Those of which all samples, or none, are positive have none and are left out.
    """

    def __init__(self, targets: Tensor, loss: Loss, _: torch.dtype) -> None:
        self.labels = loss != "cross_entropy"
        self.targets = targets
        self.outputs: list[Tensor] = []

    def add(self, outputs: Tensor, _: Tensor) -> None:
        self.outputs.append(outputs)

    def value(self, _: float) -> float:
        from scipy.stats import rankdata

        scores = torch.cat(self.outputs).double().cpu()
        y = self.targets.cpu()
        if self.labels:
            scores, positive = scores.reshape(len(y), -1), y.reshape(len(y), -1) > 0.5
        elif scores.shape[1] == 2:
            scores, positive = (scores[:, 1] - scores[:, 0])[:, None], (y == 1)[:, None]
        else:
            scores, positive = scores.softmax(1), functional.one_hot(y, scores.shape[1]) > 0
        if not bool(scores.isfinite().all()):
            return math.nan
        n1 = positive.sum(0)
        n0 = len(y) - n1
        ranks = torch.from_numpy(rankdata(scores.numpy(), axis=0))
        areas = ((ranks * positive).sum(0) - n1 * (n1 + 1) / 2) / (n1 * n0)
        return float(areas[(n1 > 0) & (n0 > 0)].mean())


class _Squares:
    """Mean squared error."""

    def __init__(self, targets: Tensor, _: Loss, wide: torch.dtype) -> None:
        self.targets, self.wide = targets, wide
        self.errors = torch.zeros(targets.shape[1:], device=targets.device, dtype=wide)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.errors += (outputs.to(self.wide) - targets.to(self.wide)).square().sum(0)

    def value(self, _: float) -> float:
        return float(self.errors.sum()) / self.targets.numel()


class _Explained(_Squares):
    """Share of the targets' variance that is explained, the mean over several numbers a sample.

    As in scikit-learn, numbers that are all alike count as 1 where they are met, else as 0.
    """

    def value(self, _: float) -> float:
        y = self.targets.to(self.wide)
        spread = (y - y.mean(0)).square().sum(0)
        alike = spread == 0
        shares = 1 - self.errors / torch.where(alike, 1.0, spread)
        return float(torch.where(alike, (self.errors == 0).to(self.wide), shares).mean())


class _OfLoss:
    """A metric that follows from the mean loss."""

    def __init__(self, targets: Tensor, loss: Loss, wide: torch.dtype) -> None:
        del targets, loss, wide

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        del outputs, targets


class _Bits(_OfLoss):
    def value(self, loss: float) -> float:
        return loss / math.log(2)


class _Perplexity(_OfLoss):
    def value(self, loss: float) -> float:
        return math.exp(loss) if loss < 700 else math.inf


_SCORES: dict[str, type[_Score]] = {
    "accuracy": _Accuracy,
    "balanced_accuracy": _Recalls,
    "auroc": _Auroc,
    "mse": _Squares,
    "r2": _Explained,
    "bits_per_token": _Bits,
    "perplexity": _Perplexity,
}

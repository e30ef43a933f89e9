"""Measuring a network on samples, and checking that it fits them.

Symbols, with shapes: B samples of a batch, C classes, V tokens of the vocabulary, k labels or
numbers of a sample.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from bo_act.data.data import Data
from bo_act.data.samples import Samples, call, shown_shape
from bo_act.data.targets import Kind
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import NetworkError, SpecError
from bo_act.training.losses import Loss, check_outputs, mean_loss, outputs_of, terms
from bo_act.training.optimization import Precision, autocast
from bo_act.user_code.failures import USERS, is_machines, one_line

EVALUATION_BATCH = 512  # larger than in training: there are no gradients

FITTING: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "auroc", "log_loss"),
    "labels": ("accuracy", "balanced_accuracy", "auroc", "log_loss"),
    "tokens": ("bits_per_token", "perplexity", "accuracy"),
    "numbers": ("mse", "r2"),
}
"""Metrics that fit each kind of targets, the usual one first."""


def metric_name(data: Data, metric: str | None) -> str:
    """Return the metric for a data set; None is the default.

    Raises:
        SpecError: it does not fit the targets.
    """
    fit = FITTING[data.kind]
    if metric is None:
        return fit[0]
    if metric not in fit:
        raise SpecError(
            f"metric.name: {metric!r} does not fit the targets of {data.name!r}, which are "
            f"{data.kind}; metrics that fit: {', '.join(fit)}"
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
        metric: a key of ``METRICS`` that fits the targets, see
            ``FITTING``.
        loss: of the training.

    Returns:
        Value as stored (accuracy is a fraction), and loss without label smoothing, cross-entropy
        in nats. Both may be infinite or NaN if the network's outputs are; AUROC is NaN if all
        samples have one class.
    """
    device = torch.device(device)
    network.to(device)
    samples = samples.to(device)
    was_training = network.training
    network.eval()
    # Float32 sums over a whole data set would lose digits.
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


def check_network(network: nn.Module, data: Data, samples: Samples, precision: Precision) -> None:
    """Pass a few samples through the network, for a clear error if it does not fit.

    Args:
        network: on the device of the samples.
        data: of the samples.
        samples: of the training.
        precision: as in ``TrainingSpec``.

    Raises:
        NetworkError: the network's outputs do not fit the targets.
    """
    few, targets = samples.take(torch.arange(min(2, len(samples)), device="cpu"))
    network.eval()
    try:
        with torch.no_grad(), autocast(targets.device, precision):
            returned = call(network, few)
    except USERS as error:
        if is_machines(error):
            raise
        what = "images" if data.of_images else "inputs"
        raise NetworkError(
            f"the network fails on {what} of shape {shown_shape(few)}: {one_line(error)}"
        ) from error
    check_outputs(returned, few, targets, data)


# --- the metrics ----------------------------------------------------------------------------------


class _Score(Protocol):
    """A metric, accumulated over batches.

    Args:
        targets: of all samples.
        loss: of the training, which distinguishes labels from classes.
        wide: dtype of sums.
    """

    def __init__(self, targets: Tensor, loss: Loss, wide: torch.dtype) -> None: ...

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""

    def value(self, loss: float) -> float:
        """Return the metric of all batches, given their mean loss."""


class _Accuracy:
    """Share of classes or tokens predicted by the largest output, or of labels by the sign."""

    def __init__(self, targets: Tensor, loss: Loss, _: torch.dtype) -> None:
        self.count = targets.numel() if loss != "cross_entropy" else int(terms(targets, loss))
        self.labels = loss != "cross_entropy"
        self.correct = torch.zeros((), dtype=torch.int64, device=targets.device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        predicted = (outputs > 0).to(targets.dtype) if self.labels else outputs.argmax(-1)
        self.correct += (predicted == targets).sum()  # IGNORED is never predicted

    def value(self, _: float) -> float:
        return int(self.correct) / self.count


class _Recalls:
    """Mean recall over the present classes; for labels, over 0 and 1 of each."""

    def __init__(self, _: Tensor, loss: Loss, wide: torch.dtype) -> None:
        self.labels = loss != "cross_entropy"
        self.wide = wide
        self.right: Tensor | None = None
        self.all: Tensor | None = None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        if self.labels:
            y = targets.flatten(1) if targets.dim() > 1 else targets[:, None]
            predicted = (outputs > 0).to(y.dtype).reshape(y.shape)
            true = torch.stack([1 - y, y])  # (2, B, k)
        else:
            y, predicted = targets, outputs.argmax(1)
            true = functional.one_hot(y, outputs.shape[1]).T  # (C, B)
        right, every = (
            (true * (predicted == y)).sum(1, dtype=self.wide),
            true.sum(1, dtype=self.wide),
        )
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

    Of two classes; of several, the mean over each against the others; of labels, their mean.
    Classes and labels without both positive and negative samples are left out.
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
    """Explained share of the targets' variance (R²), the mean over all numbers per sample.

    As in scikit-learn, a constant target counts as 1 if predicted exactly, else as 0.
    """

    def value(self, _: float) -> float:
        y = self.targets.to(self.wide)
        spread = (y - y.mean(0)).square().sum(0)
        alike = spread == 0
        shares = 1 - self.errors / torch.where(alike, 1.0, spread)
        return float(torch.where(alike, (self.errors == 0).to(self.wide), shares).mean())


class _OfLoss:
    """A metric derived from the mean loss."""

    def __init__(self, targets: Tensor, loss: Loss, wide: torch.dtype) -> None:
        del targets, loss, wide

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        del outputs, targets


class _LogLoss(_OfLoss):
    """Cross-entropy in nats, of labels the mean over them."""

    def value(self, loss: float) -> float:
        return loss


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
    "log_loss": _LogLoss,
    "mse": _Squares,
    "r2": _Explained,
    "bits_per_token": _Bits,
    "perplexity": _Perplexity,
}

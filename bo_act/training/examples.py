"""Contributions of single test examples to a metric.

If a metric is a mean over the examples, the contributions are its terms. Any other metric is a
smooth function of such means, and the contributions are its linearization (the influence function,
Hampel 1974): numbers with the metric as mean, and with the metric's spread over further examples
(the delta method; for the area under the ROC curve that of DeLong, DeLong and Clarke-Pearson 1988).

Symbols, with shapes: N examples, k labels or numbers of each, C classes, T tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from bo_act.data.samples import Samples, call
from bo_act.data.targets import IGNORED
from bo_act.dependencies.torch_state import plain_torch
from bo_act.training.losses import Loss, outputs_of
from bo_act.training.optimization import Precision, autocast

Floats = NDArray[np.float64]


def per_example(
    network: nn.Module,
    samples: Samples,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
    metric: str = "accuracy",
    loss: Loss = "cross_entropy",
) -> NDArray[Any]:
    """Return the contribution of each of N samples to a metric, (N,); see ``measure``.

    Returns:
        Numbers with the metric as mean: for the accuracy of one class per sample bool, whether it
        is right; else float64, not finite if the metric is not.
    """
    device = torch.device(device)
    network.to(device)
    samples = samples.to(device)
    was_training = network.training
    network.eval()
    found: list[list[Tensor]] = []
    with plain_torch(device), torch.no_grad(), autocast(device, precision):
        for inputs, targets in samples.batches(batch_size):
            outputs = outputs_of(call(network, inputs)).float()
            if loss != "cross_entropy":
                outputs = outputs.reshape(targets.shape)
            found.append([one.cpu() for one in _parts(metric, outputs, targets, loss)])
    network.train(was_training)
    parts = [torch.cat(some).double().numpy() for some in zip(*found, strict=True)]
    targets = samples.targets.cpu()
    if metric == "accuracy" and len(parts) == 1 and targets.dim() == 1:
        return parts[0].astype(bool)
    with np.errstate(all="ignore"):
        return _influences(metric, parts, targets.double().numpy(), loss)


def _parts(metric: str, outputs: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, ...]:
    """Return the stored parts of a batch, (B, ...) each, none as long as a vocabulary."""
    if metric in ("mse", "r2"):
        return ((outputs - targets).square(),)
    if metric == "auroc":
        return (outputs,)
    if metric == "log_loss":
        if loss == "cross_entropy":
            return (functional.cross_entropy(outputs, targets, reduction="none"),)
        return (functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none"),)
    if loss != "cross_entropy":
        return ((outputs > 0) == targets.bool(),)
    if metric == "balanced_accuracy" or (metric == "accuracy" and targets.dim() == 1):
        return (outputs.argmax(-1) == targets,)
    counts = (targets != IGNORED).sum(1)
    if metric == "accuracy":  # IGNORED is never predicted
        return (outputs.argmax(-1) == targets).sum(1), counts
    losses = functional.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.reshape(targets.shape).double().sum(1), counts


def _influences(metric: str, parts: list[Floats], y: Floats, loss: Loss) -> Floats:
    """Return the contributions of N examples from their stored parts and targets."""
    if len(parts) == 2:
        each = _ratio(*parts)
        if metric == "bits_per_token":
            return each / math.log(2)
        if metric == "perplexity":
            return np.asarray(np.exp(each.mean()) * (1 + each - each.mean()))
        return each
    (part,) = parts
    if metric == "auroc":
        return _of_columns(*_areas(part, y, loss))
    part, y = part.reshape(len(part), -1), y.reshape(len(y), -1)
    if metric == "balanced_accuracy":
        return _recalls(part, y)
    if metric == "r2":
        return _explained(part, y)
    return np.asarray(part.mean(axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return the influences on the ratio of two sums, (N,)."""
    ratio = above.sum() / below.sum()
    return np.asarray(ratio + (above - ratio * below) / below.mean())


def _recalls(right: Floats, y: Floats) -> Floats:
    """Return the influences on the mean recall, (N,); for labels their mean."""
    columns = []
    for of_right, of_y in zip(right.T, y.T, strict=True):
        values = np.unique(of_y)
        each = np.zeros(len(of_y))
        for value in values:
            there = of_y == value
            recall = of_right[there].mean()
            each += recall + np.where(there, (of_right - recall) / there.mean(), 0.0)
        columns.append(each / len(values))
    return np.asarray(np.mean(columns, axis=0))


def _explained(squares: Floats, y: Floats) -> Floats:
    """Return the influences on the explained share of the variance, (N,)."""
    away = np.square(y - y.mean(axis=0))
    variance, error = away.mean(axis=0), squares.mean(axis=0)
    alike = variance == 0
    safe = np.where(alike, 1.0, variance)
    each = 1 - squares / safe + error / safe * (away / safe - 1)
    return np.asarray(np.where(alike, (error == 0).astype(float), each).mean(axis=1))


def _areas(outputs: Floats, y: Floats, loss: Loss) -> tuple[Floats, NDArray[np.bool_]]:
    """Return scores and positives, (N, k) each; see ``measure`` for the metric."""
    if loss != "cross_entropy":
        return outputs.reshape(len(y), -1), y.reshape(len(y), -1) > 0.5
    if outputs.shape[1] == 2:
        return (outputs[:, 1] - outputs[:, 0])[:, None], (y == 1)[:, None]
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    classes = np.arange(outputs.shape[1])
    return shares / shares.sum(axis=1, keepdims=True), y[:, None] == classes


def _of_columns(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Return the influences on the mean area under the ROC curve, (N,)."""
    if not np.isfinite(scores).all():
        return np.full(len(scores), np.nan)
    columns = []
    for score, good in zip(scores.T, positive.T, strict=True):
        if good.all() or not good.any():
            continue
        among_all = rankdata(score)
        among_own = np.empty(len(score))
        for kind in (good, ~good):
            among_own[kind] = rankdata(score[kind])
        # The share of the other kind on the correct side of an example; ties count half.
        below = (among_all - among_own) / np.where(good, (~good).sum(), good.sum())
        placed = np.where(good, below, 1 - below)
        area = placed[good].mean()
        columns.append(area + (placed - area) / np.where(good, good.mean(), (~good).mean()))
    return np.asarray(np.mean(columns, axis=0)) if columns else np.full(len(scores), np.nan)

"""Gradients of the loss with respect to a network's outputs, for each kind of Fisher matrix.

Symbols, with shapes:

    N, C     examples: images, or tokens of these; outputs of each
    f, p     (N, C) outputs; their softmax, or sigmoid
    t        (N, C) targets

The network's outputs are the parameters of a distribution: logits of a categorical one
(``cross_entropy``), logits of C Bernoulli ones (``binary_cross_entropy``: several labels at once,
or one; the loss is the sum over them) or means of normal ones of variance 1 (``mse``: the loss is
half the sum of squares, ½‖f - t‖²; a mean over outputs, or no half, only shifts all log-eigenvalues
alike). The Fisher matrix is the covariance of the gradient for targets drawn from that
distribution. Label smoothing and soft targets change the true targets, not the predictions, so
only the empirical matrix uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import FeatureError
from bo_act.fisher.options import FisherOptions, Loss

__all__ = ["inferred", "output_gradients"]


def inferred(loss: Loss | None, targets: Tensor | None) -> Loss:
    """Return the given loss, or the obvious one for targets of this dtype.

    Raises:
        FeatureError: the targets are neither whole nor floating-point numbers.
    """
    if loss is not None:
        return loss
    if targets is not None and targets.is_floating_point():
        return "mse"
    if targets is not None and (targets.dtype == torch.bool or targets.is_complex()):
        raise _not_plain(targets)
    return "cross_entropy"


def _not_plain(targets: Tensor) -> FeatureError:
    return FeatureError(
        f"the loss cannot be inferred from targets of {targets.dtype} and shape "
        f"{tuple(targets.shape)}: set it to 'cross_entropy' (outputs are logits of classes), "
        "'binary_cross_entropy' (logits of 0/1 labels) or 'mse' (numbers); in a study file it is "
        "features.loss"
    )


def output_gradients(
    outputs: Tensor, targets: Tensor | None, options: FisherOptions
) -> list[Tensor]:
    """Return (N, C) gradients with respect to the outputs, one for each backward pass.

    Computed on the CPU, so that a seed draws the same targets on every device, and in float64,
    because p - 1 of a saturated prediction cancels.

    Raises:
        FeatureError: the targets do not fit the outputs, or imply no loss.
    """
    fisher = options.fisher
    if (
        options.loss is None
        and targets is not None
        and targets.dim() != 1 + targets.is_floating_point()
    ):
        raise _not_plain(targets)
    loss = inferred(options.loss, targets)
    if loss == "cross_entropy" and outputs.shape[1] == 1:
        raise FeatureError(
            "the softmax of one output is 1 whatever the network does, so its Fisher matrix is "
            "zero; for a regression set the loss to 'mse', for two classes to "
            "'binary_cross_entropy' (in a study file it is features.loss), or give the network two "
            "outputs"
        )
    f = outputs.detach().cpu().double()
    generator = torch.Generator().manual_seed(int(options.seed))
    if fisher == "empirical":
        t = _targets(targets, f, loss, options.label_smoothing)
        vectors = [_mean(f, loss) - t]
    elif loss == "mse":
        if fisher == "exact":  # the sum over c of e_c e_cᵀ is the covariance I
            vectors = list(_unit_vectors(f).expand(-1, *f.shape))
        else:
            vectors = [torch.randn(f.shape, device="cpu", dtype=torch.float64, generator=generator)]
    elif loss == "binary_cross_entropy":
        p = f.sigmoid()
        if fisher == "exact":  # independent outputs: the covariance is diagonal
            vectors = list(_unit_vectors(p) * (p * (-f).sigmoid()).sqrt())
        else:
            vectors = [p - torch.bernoulli(p, generator=generator)]
    else:
        p = f.softmax(1)
        if fisher == "exact":
            # The sum over c of p_c (p - e_c)(p - e_c)ᵀ is E[d dᵀ] at the logits.
            vectors = list((p.unsqueeze(0) - _unit_vectors(p)) * p.T.sqrt()[..., None])
        else:
            chosen = torch.multinomial(p, 1, generator=generator)
            vectors = [p - torch.zeros_like(p).scatter_(1, chosen, 1.0)]
    return [vector.to(outputs) for vector in vectors]


def _mean(f: Tensor, loss: Loss) -> Tensor:
    """Return the mean of the predicted targets."""
    if loss == "mse":
        return f
    return f.softmax(1) if loss == "cross_entropy" else f.sigmoid()


def _unit_vectors(f: Tensor) -> Tensor:
    """Return (C, 1, C) for outputs (N, C)."""
    return torch.eye(f.shape[1], device="cpu", dtype=torch.float64).unsqueeze(1)


def _targets(labels: Tensor | None, f: Tensor, loss: Loss, label_smoothing: float) -> Tensor:
    """Return t from (N,) classes or (N, C) targets."""
    batch, classes = f.shape
    shape = None if labels is None else tuple(labels.shape)
    numbers = labels is not None and (labels.is_floating_point() or loss != "cross_entropy")
    if labels is not None and numbers and shape == (batch, classes):
        targets = labels.detach().cpu().double()
        if loss == "binary_cross_entropy" and not bool(((targets >= 0) & (targets <= 1)).all()):
            raise FeatureError(
                "expected targets of binary_cross_entropy from 0 to 1, got values from "
                f"{targets.min():.3g} to {targets.max():.3g}"
            )
        if loss == "cross_entropy" and not bool(
            (targets >= 0).all() and ((targets.sum(1) - 1).abs() < 1e-3).all()
        ):
            raise FeatureError(
                "expected probabilities as soft targets (not negative, each row summing to 1), "
                f"got values from {targets.min():.3g} to {targets.max():.3g}"
            )
    elif (
        labels is not None
        and loss != "binary_cross_entropy"
        and not labels.is_floating_point()
        and shape == (batch,)
    ):
        labels = labels.detach().cpu().long()
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise FeatureError(
                f"expected labels in [0, {classes}), got {int(labels.min())} to {int(labels.max())}"
            )
        targets = torch.nn.functional.one_hot(labels, classes).double()
    else:
        came = "None" if labels is None else f"{labels.dtype} of shape {shape}"
        raise FeatureError(
            f"expected {batch} integer labels for the empirical Fisher, or targets of shape "
            f"({batch}, {classes}), got {came}"
        )
    if loss != "cross_entropy":
        return targets
    return targets * (1.0 - label_smoothing) + label_smoothing / classes

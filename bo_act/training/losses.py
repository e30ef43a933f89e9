"""Losses, and the outputs of a network that they need.

Symbols, with shapes:

    B, T     samples of a batch; tokens of a sample
    C, V     classes; tokens of the vocabulary
    k        labels or numbers of a sample; (B, 1) and (B,) are the same where there is one
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from bo_act.data.data import Data
from bo_act.data.samples import Inputs, shown_shape
from bo_act.data.targets import IGNORED, LOSSES
from bo_act.errors import FeatureError, NetworkError, SpecError
from bo_act.fisher.calls import logits_of
from bo_act.specs import TrainingSpec

Loss = Literal["cross_entropy", "binary_cross_entropy", "mse", "mae"]


def loss_name(data: Data, spec: TrainingSpec) -> Loss:
    """Return the loss of a recipe on a data set.

    Raises:
        SpecError: it does not fit the targets, or the recipe has an option of other losses.
    """
    fit = LOSSES[data.kind]
    loss = fit[0] if spec.loss == "auto" else spec.loss
    if loss not in fit:
        raise SpecError(
            f"training.loss = {loss!r} does not fit the targets of {data.name!r}, which are "
            f"{data.kind}; losses that fit: {', '.join(fit)}"
        )
    if spec.label_smoothing and loss != "cross_entropy":
        raise SpecError(
            f"training.label_smoothing is for cross-entropy, and the loss is {loss!r}; leave it out"
        )
    if spec.collapse_epochs and data.kind != "classes":
        raise SpecError(
            "training.collapse_epochs looks for the accuracy of guessing a class, and the targets "
            f"of {data.name!r} are {data.kind}; leave it out"
        )
    if spec.channels_last and not data.of_images:
        raise SpecError(
            f"training.channels_last is for images (n, c, h, w), but {data.name!r} has none; leave "
            "it out"
        )
    return cast(Loss, loss)


def mean_loss(
    outputs: Tensor,
    targets: Tensor,
    loss: Loss,
    *,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return the mean loss of a batch, in float32.

    Args:
        outputs: (B, C) or (B, T, V) logits, or (B, k) logits or numbers.
        targets: (B,) classes or (B, C) probabilities, (B, T) tokens (``IGNORED`` ones have no
            loss), or (B, k).
        loss: ``mse`` and the binary cross-entropy are means over all k.
        label_smoothing: of cross-entropy.
        reduction: ``mean``, or the sum of the same terms.
    """
    outputs = outputs.float()
    if loss == "cross_entropy":
        if outputs.dim() == 2:
            return functional.cross_entropy(
                outputs, targets, label_smoothing=label_smoothing, reduction=reduction
            )
        total = functional.cross_entropy(
            outputs.flatten(0, 1),
            targets.flatten(),
            label_smoothing=label_smoothing,
            reduction="sum",
            ignore_index=IGNORED,
        )
        # A batch with only ignored tokens has the loss 0.
        return total if reduction == "sum" else total / terms(targets, loss).clamp(min=1)
    outputs = outputs.reshape(targets.shape)
    if loss == "binary_cross_entropy":
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction)
    if loss == "mse":
        return functional.mse_loss(outputs, targets, reduction=reduction)
    return functional.l1_loss(outputs, targets, reduction=reduction)


def terms(targets: Tensor, loss: Loss) -> Tensor:
    """Return the number of terms in a batch's mean loss."""
    if loss == "cross_entropy" and targets.dim() == 2 and not targets.is_floating_point():
        return (targets != IGNORED).sum()
    count = len(targets) if loss == "cross_entropy" else targets.numel()
    return torch.tensor(count, device=targets.device, dtype=torch.int64)


def share(piece: Tensor, batch: Tensor, loss: Loss) -> Tensor | float:
    """Return the weight of a micro-batch's mean loss in that of its batch."""
    if piece.dtype == torch.int64 and piece.dim() == 2:  # some tokens have no loss
        return terms(piece, loss) / terms(batch, loss).clamp(min=1)
    return len(piece) / len(batch)


def outputs_of(returned: Any) -> Tensor:
    """Return a network's outputs, or the logits of a mapping or object.

    Raises:
        NetworkError: there are none.
    """
    if isinstance(returned, Tensor):
        return returned
    try:
        return logits_of(returned)
    except FeatureError as error:
        raise NetworkError(str(error)) from error


def check_outputs(returned: object, inputs: Inputs, targets: Tensor, data: Data) -> Tensor:
    """Return a network's outputs, checked against the targets.

    Args:
        returned: by the network.
        inputs: of the batch.
        targets: of the batch.
        data: of the batch.

    Raises:
        NetworkError: they do not fit.
    """
    outputs = data.facts["out_features"]
    expected: tuple[int, ...] = tuple(targets.shape)
    if data.kind in ("classes", "tokens"):
        expected = (*targets.shape, outputs)
    single = {(len(targets),), (len(targets), 1)}
    tensor = returned if isinstance(returned, tuple | list) else outputs_of(returned)
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
    either = data.kind in ("labels", "numbers") and {shape, expected} <= single
    if not isinstance(tensor, Tensor) or not (shape == expected or either):
        what = "numbers" if data.kind == "numbers" else "logits"
        given = f"{'images' if data.of_images else 'inputs'} {shown_shape(inputs)}"
        hint = ""
        if data.kind == "tokens" and shape == tuple(targets.shape):
            hint = (
                "; for several labels of 0 or 1 each set training.loss = 'binary_cross_entropy', "
                "for numbers 'mse'"
            )
        raise NetworkError(
            f"expected the network to map {given} to {what} {expected}, "
            f"got {type(returned).__name__ if shape is None else shape}{hint}"
        )
    if not tensor.is_floating_point():
        raise NetworkError(f"expected outputs of a floating dtype, got {tensor.dtype}")
    return tensor

"""Measuring a network on images, and telling whether it fits them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bo_act.data.images import Images
from bo_act.errors import NetworkError
from bo_act.failures import USERS, is_machines, one_line
from bo_act.torch_state import plain_torch
from bo_act.training.optimization import Precision, autocast

EVALUATION_BATCH = 512  # without gradients, larger batches than in training fit


def evaluate(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
) -> float:
    """Return the accuracy of a network, a fraction; see ``measure``."""
    return measure(network, images, batch_size=batch_size, device=device, precision=precision)[0]


def measure(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a network, which is put into evaluation mode.

    Args:
        network: from images (b, c, h, w) to logits (b, classes).
        images: what to classify; moved to the device if they are elsewhere.
        batch_size: images at a time.
        device: where to compute.
        precision: as in ``TrainingSpec``.

    Returns:
        Accuracy, a fraction, and the loss in nats, without label smoothing.
    """
    device = torch.device(device)
    network.to(device)
    images = images.to(device)
    was_training = network.training
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    # Sums of float32 losses over a whole data set would lose digits.
    wide = torch.float32 if device.type == "mps" else torch.float64
    loss = torch.zeros((), device=device, dtype=wide)
    with plain_torch(device), torch.no_grad(), autocast(device, precision):
        for batch, labels in images.batches(batch_size):
            logits = network(batch).float()
            correct += (logits.argmax(1) == labels).sum()
            loss += functional.cross_entropy(logits, labels, reduction="sum")
    network.train(was_training)
    return int(correct) / len(images), float(loss) / len(images)


def per_example(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "auto",
) -> NDArray[np.bool_]:
    """Return which of n examples a network classifies rightly, (n,); see ``measure``.

    Their mean is the accuracy.
    """
    device = torch.device(device)
    network.to(device)
    images = images.to(device)
    was_training = network.training
    network.eval()
    right = []
    with plain_torch(device), torch.no_grad(), autocast(device, precision):
        for batch, labels in images.batches(batch_size):
            right.append((network(batch).float().argmax(1) == labels).cpu())
    network.train(was_training)
    return torch.cat(right).numpy()


def check_network(
    network: nn.Module,
    images: Images,
    *,
    num_classes: int,
    precision: Precision,
) -> None:
    """Pass a few images through, so that a misfit is named as such.

    Raises:
        NetworkError: the network does not map the images to logits of the classes.
    """
    few, _ = images.take(torch.arange(min(2, len(images)), device="cpu"))
    device = few.device
    network.eval()
    shape = tuple(few.shape)
    try:
        with torch.no_grad(), autocast(device, precision):
            logits = network(few)
    except USERS as error:
        if is_machines(error):
            raise
        raise NetworkError(
            f"the network fails on images of shape {shape}: {one_line(error)}"
        ) from error
    check_logits(logits, few, num_classes=num_classes)


def check_logits(logits: object, images: Tensor, *, num_classes: int) -> None:
    """Look whether what a network returned are logits of the images' classes.

    Raises:
        NetworkError: they are not.
    """
    expected = (len(images), num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(
            f"expected the network to map images {tuple(images.shape)} to logits {expected}, "
            f"got {came}"
        )
    if not logits.is_floating_point():
        raise NetworkError(f"expected logits of a floating dtype, got {logits.dtype}")

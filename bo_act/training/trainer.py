"""Training one network: a plain PyTorch loop, deterministic on a CPU.

A batch is a slice of a random permutation. A training loss that is not finite ends the run, and
that is a result ("diverged"), not an error.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bo_act.errors import NetworkError, SpecError
from bo_act.specs import TrainingSpec
from bo_act.training.data import Data
from bo_act.training.images import Images

Precision = Literal["auto", "float32", "bfloat16"]

STEPS_BETWEEN_LOOKS = 50  # reading a loss waits for the GPU; a diverged run wastes at most these
EVALUATION_BATCH = 512  # without gradients, larger batches than in training fit
START_DIVISOR, END_DIVISOR = 25.0, 1e4  # of the one-cycle schedule, as in torch's OneCycleLR


@dataclass(frozen=True)
class TrainingResult:
    """What came of one training run.

    Attributes:
        status: ``diverged`` where a training loss was infinite or NaN, else ``completed``, at
            whatever accuracy.
        curve: validation accuracy after each finished epoch, a fraction.
        train_loss: mean training loss of each finished epoch.
        validation_accuracy: the last epoch's, or the chance level of a diverged run.
        seconds: wall time of training and validation.
        epoch_of_divergence: the epoch, from 0, in which the loss ceased to be finite.
    """

    status: Literal["completed", "diverged"]
    curve: tuple[float, ...]
    train_loss: tuple[float, ...]
    validation_accuracy: float
    seconds: float
    epoch_of_divergence: int | None = None


def train(
    network: nn.Module,
    data: Data,
    spec: TrainingSpec,
    *,
    seed: int,
    report: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Train a network in place and measure its validation accuracy after each epoch.

    The last, partial batch of each epoch is left out, unless it is the only one. torch's global
    random state and thread count are left as they were.

    Args:
        network: from images (b, c, h, w) to logits (b, num_classes); it ends on the device.
        data: training and validation images.
        spec: how to train.
        seed: of the order of the images and of dropout. On a CPU, the same network, data, spec
            and seed give the same numbers bit for bit.
        report: called after each epoch with the epoch, from 0, and the validation accuracy. What
            it raises ends the training and passes through.

    Raises:
        SpecError: the device is not there.
        NetworkError: the network does not fit the data, or has nothing to train.
    """
    started = time.perf_counter()
    device = pick_device(spec.device)
    with cpu_threads(spec.threads), torch.random.fork_rng(_rng_devices(device)):
        torch.manual_seed(seed)
        network.to(device)
        images = data.train.to(device)
        validation = data.validation.to(device)
        _check_network(network, images, num_classes=data.num_classes, precision=spec.precision)
        optimizer = _optimizer(network, spec)
        order = torch.Generator().manual_seed(seed)
        curve: list[float] = []
        losses: list[float] = []
        for epoch in range(spec.epochs):
            permutation = torch.randperm(len(images), generator=order)
            loss = _train_epoch(
                network, images, permutation, optimizer=optimizer, spec=spec, draw=(seed, epoch)
            )
            if not math.isfinite(loss):
                return TrainingResult(
                    status="diverged",
                    curve=tuple(curve),
                    train_loss=tuple(losses),
                    validation_accuracy=1 / data.num_classes,
                    seconds=time.perf_counter() - started,
                    epoch_of_divergence=epoch,
                )
            accuracy = evaluate(
                network,
                validation,
                batch_size=max(spec.batch_size, EVALUATION_BATCH),
                device=device,
                precision=spec.precision,
            )
            losses.append(loss)
            curve.append(accuracy)
            if report is not None:
                report(epoch, accuracy)
    return TrainingResult(
        status="completed",
        curve=tuple(curve),
        train_loss=tuple(losses),
        validation_accuracy=curve[-1],
        seconds=time.perf_counter() - started,
    )


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
    loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64)
    loss = loss.to(device)
    with torch.no_grad(), _autocast(device, precision):
        for batch, labels in images.batches(batch_size):
            logits = network(batch).float()
            correct += (logits.argmax(1) == labels).sum()
            loss += functional.cross_entropy(logits, labels, reduction="sum")
    network.train(was_training)
    return int(correct) / len(images), float(loss) / len(images)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        SpecError: the device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}
    if (device.index or 0) >= count[device.type]:
        raise SpecError(
            f"training.device: expected a device that is there, got {name!r} with "
            f"{count[device.type]} {device.type} devices; use 'auto' or 'cpu'"
        )
    return device


def learning_rate(spec: TrainingSpec, *, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, out of ``steps`` in the whole run.

    ``one_cycle`` is torch's OneCycleLR (cosine, two phases; Smith and Topin 2018), which divides
    by zero where the warm-up is exactly one step. ``cosine`` rises linearly, then falls to zero
    by half a cosine (Loshchilov and Hutter 2017). ``constant`` has no warm-up.
    """
    if spec.schedule == "constant":
        return spec.learning_rate
    if spec.schedule == "cosine":
        rising = spec.warmup * steps
        if step < rising:
            return spec.learning_rate * min(1.0, (step + 1) / rising)
        return _cosine(spec.learning_rate, 0.0, (step - rising) / (steps - rising))
    low = spec.learning_rate / START_DIVISOR
    top = spec.warmup * steps - 1
    if step <= top:
        return _cosine(low, spec.learning_rate, step / top if top > 0 else 1.0)
    return _cosine(spec.learning_rate, low / END_DIVISOR, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _train_epoch(
    network: nn.Module,
    images: Images,
    order: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    spec: TrainingSpec,
    draw: tuple[int, int],
) -> float:
    """Train for one epoch and return the mean loss; stop early where it cannot be finite.

    Args:
        network: in training; on the same device as the images.
        images: training images.
        order: a permutation (n,) of them.
        optimizer: of the network.
        spec: how to train.
        draw: seed and epoch of the augmentation.
    """
    device = images.labels.device
    batch_size = min(spec.batch_size, len(images))
    batches = len(images) // batch_size
    order = order[: batches * batch_size]
    epoch = draw[1]
    look = 1 if _is_cheap_to_read(device) else STEPS_BETWEEN_LOOKS
    # Losses are not negative: one that is not finite stays visible in the sum.
    total = torch.zeros((), device=device)
    network.train()
    for step, (batch, labels) in enumerate(images.batches(batch_size, order=order, draw=draw)):
        rate = learning_rate(spec, step=epoch * batches + step, steps=spec.epochs * batches)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _autocast(device, spec.precision):
            logits = network(batch)
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=spec.label_smoothing
        )
        total += loss.detach()
        if (step + 1) % look == 0 and not math.isfinite(float(total)):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return float(total) / batches


def _optimizer(network: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise NetworkError("expected a network with weights to train, got one without any")
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.SGD(
        weights,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov and spec.momentum > 0,
        weight_decay=spec.weight_decay,
    )


def _check_network(
    network: nn.Module,
    images: Images,
    *,
    num_classes: int,
    precision: Precision,
) -> None:
    """Pass a few images through, so that a misfit is named as such."""
    few, _ = images.take(torch.arange(min(2, len(images))))
    device = few.device
    network.eval()
    shape = tuple(few.shape)
    try:
        with torch.no_grad(), _autocast(device, precision):
            logits = network(few)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise NetworkError(
            f"the network fails on images of shape {shape}: {type(error).__name__}: {cause}"
        ) from error
    expected = (len(few), num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(
            f"expected the network to map images {shape} to logits {expected}, got {came}"
        )


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    if precision == "auto":
        lower = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        lower = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)


def _is_cheap_to_read(device: torch.device) -> bool:
    return device.type == "cpu"


def _rng_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many CPU threads inside; None leaves them as they are."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

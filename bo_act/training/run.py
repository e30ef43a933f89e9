"""A training under way: everything that one more step depends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bo_act.data.images import Images
from bo_act.specs import TrainingSpec
from bo_act.training.checkpoint import on_cpu
from bo_act.training.evaluation import evaluate
from bo_act.training.optimization import (
    autocast,
    learning_rate,
    loss_scaler,
    make_optimizer,
    moving_average,
)
from bo_act.training.outcomes import TrainingStopped

STEPS_BETWEEN_LOOKS = 50  # reading a loss waits for the GPU; a diverged run wastes at most these

Forward = Callable[[Tensor], Tensor]


class Run:
    """A network in training.

    ``state`` and ``restore`` hold all of it: what follows from a state is bit for bit what would
    have followed without the interruption, on the same device with deterministic kernels. What a
    network keeps outside of its parameters and persistent buffers is not held.

    Attributes:
        curve: validation accuracy of each finished epoch.
        losses: mean training loss of each finished epoch.
        step: steps done in the epoch that is under way.
        micro_batch: images that are passed through at a time.
        evaluation_batch: the same in validation.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        spec: TrainingSpec,
        *,
        seed: int,
        forward: Forward,
        evaluation_batch: int,
    ) -> None:
        self.network = network
        self.images = images
        self.spec = spec
        self.seed = seed
        self.forward = forward
        self.device = images.labels.device
        self.batch_size = min(spec.batch_size, len(images))
        self.batches = len(images) // self.batch_size
        self.micro_batch = min(spec.micro_batch or self.batch_size, self.batch_size)
        self.evaluation_batch = evaluation_batch
        self.optimizer = make_optimizer(network, spec)
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.scaler = loss_scaler(self.device, spec.precision)
        self.average = moving_average(network, spec.ema)
        self.order = torch.Generator().manual_seed(seed)
        self.order_before = self.order.get_state()
        self.curve: list[float] = []
        self.losses: list[float] = []
        self.step = 0
        # Losses are not negative: one that is not finite stays visible in the sum.
        self.total = torch.zeros((), device=self.device, dtype=torch.float32)

    def train_epoch(self, stop: Callable[[], bool] | None = None) -> float:
        """Train to the end of the epoch; return its mean loss, early where that is not finite.

        Args:
            stop: asked after each step whether to leave off there.

        Raises:
            TrainingStopped: ``stop`` said so; ``state`` can be gone on from.
        """
        epoch = len(self.curve)
        order = torch.randperm(len(self.images), device="cpu", generator=self.order)
        order = order[self.step * self.batch_size : self.batches * self.batch_size]
        draw = (self.seed, epoch)
        self.network.train()
        for batch, labels in self.images.batches(self.batch_size, order=order, draw=draw):
            if not self._step(batch, labels, epoch):
                return math.nan
            if stop is not None and stop() and self.step < self.batches:
                raise TrainingStopped("the training was asked to stop")
        loss = float(self.total) / self.batches
        if math.isfinite(loss):
            self.step = 0
            self.total = torch.zeros((), device=self.device, dtype=torch.float32)
            self.order_before = self.order.get_state()
        return loss

    def validate(self, validation: Images) -> float:
        """Return the accuracy on validation images, of the averaged weights where there are."""
        return evaluate(
            self.network if self.average is None else self.average,
            validation,
            batch_size=self.evaluation_batch,
            device=self.device,
            precision=self.spec.precision,
        )

    def finish(self) -> None:
        """Give the network its averaged weights."""
        if self.average is not None:
            self.network.load_state_dict(self.average.module.state_dict())

    def halve(self) -> bool:
        """Pass half as many images through at a time; False where there is but one."""
        if self.micro_batch == 1:
            return False
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.evaluation_batch = math.ceil(self.evaluation_batch / 2)
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the rest of the training follows from."""
        held: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "order": self.order_before,
            "random": torch.get_rng_state(),
            "device_random": (
                torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            ),
            "total": self.total,
            "step": self.step,
            "curve": self.curve,
            "losses": self.losses,
            "micro_batch": self.micro_batch,
        }
        copied: dict[str, Any] = on_cpu({**held, "network": dict(held["network"])})
        return copied

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state, which is left as it is."""
        held = on_cpu(state)
        self.network.load_state_dict(held["network"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.scaler.load_state_dict(held["scaler"])
        if self.average is not None:
            self.average.load_state_dict(held["average"])
        self.order_before = held["order"]
        self.order.set_state(self.order_before)
        torch.set_rng_state(held["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(held["device_random"], self.device)
        self.total = held["total"].to(self.device)
        self.step, self.curve, self.losses = held["step"], held["curve"], held["losses"]
        self.micro_batch = min(self.micro_batch, held["micro_batch"])

    def _step(self, batch: Tensor, labels: Tensor, epoch: int) -> bool:
        """Make a step; False, without changing the weights, where the loss is seen not finite."""
        spec, done = self.spec, self.step + 1
        position = epoch * self.batches + self.step
        rate = learning_rate(spec, step=position, steps=spec.epochs * self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        look = is_cheap_to_read(self.device) or done % STEPS_BETWEEN_LOOKS == 0
        if spec.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        for piece, its in zip(
            batch.split(self.micro_batch), labels.split(self.micro_batch), strict=True
        ):
            with autocast(self.device, spec.precision):
                logits = self.forward(piece)
            loss = functional.cross_entropy(
                logits.float(), its, label_smoothing=spec.label_smoothing
            )
            if len(piece) < len(batch):
                loss = loss * (len(piece) / len(batch))
            self.total += loss.detach()
            if look and not math.isfinite(float(self.total)):
                return False
            self.scaler.scale(loss).backward()
        if spec.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights, spec.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step = done
        return True


def is_cheap_to_read(device: torch.device) -> bool:
    """Tell whether reading a value from a device waits for nothing."""
    return device.type == "cpu"

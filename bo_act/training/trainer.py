"""Training one network: a plain PyTorch loop, deterministic on a CPU.

A batch is a slice of a random permutation. A training loss that is not finite ends the run with a
result ("diverged"), not an error. Too little memory halves the micro-batch. A checkpoint lets a
killed training resume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bo_act.data.data import Data
from bo_act.data.samples import Inputs, call, mapped, rows
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import NetworkError
from bo_act.specs import TrainingSpec
from bo_act.specs.base import checked_seed
from bo_act.training.checkpoint import Checkpoint, SafeState, on_cpu
from bo_act.training.compiled import compiled
from bo_act.training.devices import (
    channels_last,
    cpu_threads,
    deterministic_kernels,
    pick_device,
    rng_devices,
)
from bo_act.training.evaluation import (
    EVALUATION_BATCH,
    check_network,
    evaluate,
    measure,
    metric_name,
)
from bo_act.training.losses import loss_name, mean_loss, outputs_of, share
from bo_act.training.optimization import (
    Precision,
    autocast,
    learning_rate,
    loss_scaler,
    make_optimizer,
    moving_average,
)
from bo_act.training.outcomes import TrainingResult, TrainingStopped

__all__ = [
    "EVALUATION_BATCH",
    "Precision",
    "TrainingResult",
    "cpu_threads",
    "evaluate",
    "measure",
    "pick_device",
    "train",
]

STEPS_BETWEEN_LOOKS = 50  # reading a loss waits for the GPU; a diverged run wastes at most so many


def train(
    network: nn.Module,
    data: Data,
    spec: TrainingSpec,
    *,
    metric: str | None = None,
    seed: int,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a network in place and measure it on the validation samples after each epoch.

    The last, partial batch of each epoch is left out, unless it is the only one. torch's global
    random state, thread count and flags stay unchanged.

    Args:
        network: from inputs (b, ...) to logits (b, num_classes), or other outputs for other
            targets (see ``bo_act.training.losses``); it is moved to the device.
        data: training and validation samples.
        spec: how to train.
        metric: a key of ``METRICS`` that fits the targets; default: accuracy of classes and labels,
            bits per token, or the mean squared error.
        seed: of the order of the samples and of dropout. On a CPU, the same network, data, spec
            and seed give the same numbers bit for bit.
        report: called after each epoch with the epoch, from 0, and the metric's value; a resumed
            training reports earlier epochs again. Its exceptions end the training and pass through.
        checkpoint: file for the state; training resumes from an existing one and deletes it at the
            end.
        stop: called after each step; if True, the state is saved and the training ends.

    Raises:
        SpecError: there is no such device, or loss, metric or recipe do not fit the data.
        NetworkError: the network does not fit the data, has nothing to train, or lacks
            deterministic kernels that the recipe requires.
        TrainingStopped: ``stop`` returned True.
        torch.OutOfMemoryError: not even a single sample at a time fits.
    """
    seed = checked_seed(seed)
    device = pick_device(spec.device)
    with (
        plain_torch(device),
        cpu_threads(spec.threads),
        torch.random.fork_rng(rng_devices(device)),
        deterministic_kernels(spec.deterministic),
    ):
        torch.manual_seed(seed)
        training = _Training(network, data, spec, metric=metric, seed=seed, device=device)
        try:
            return training.run(report, checkpoint, stop or _never)
        except RuntimeError as error:
            if spec.deterministic and "deterministic" in str(error):
                cause = " ".join(str(error).split())[:300]
                raise NetworkError(
                    f"training.deterministic: the network has no such kernels here: {cause}"
                ) from error
            raise


class _Training:
    """One call of ``train``.

    ``state`` and ``restore`` cover everything that the next step depends on: a resumed training is
    bit for bit the uninterrupted one, on the same device with deterministic kernels. Only state of
    the network outside its parameters and persistent buffers is not saved.

    Attributes:
        curve, losses: validation metric and mean training loss of each finished epoch.
        step, total: steps done in the current epoch, and the sum of their losses.
        order: generator of the permutations; ``order_before`` is its state before the epoch.
        micro_batch: samples per forward pass.
        reported: number of reported epochs; some may be repeated after running out of memory.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        spec: TrainingSpec,
        *,
        metric: str | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.started = time.perf_counter()
        self.data, self.spec, self.seed, self.device = data, spec, seed, device
        self.loss, self.metric = loss_name(data, spec), metric_name(data, metric)
        self.network = network.to(device)
        if spec.channels_last:
            network.to(memory_format=torch.channels_last)
        self.samples, self.validation = data.train.to(device), data.validation.to(device)
        check_network(network, data, self.samples, spec.precision)
        self.forward, note = compiled(network, self.samples, spec)
        self.notes = [] if note is None else [note]

        self.batch_size = min(spec.batch_size, len(self.samples))
        self.batches = len(self.samples) // self.batch_size
        self.micro_batch = min(spec.micro_batch or self.batch_size, self.batch_size)
        self.evaluation_batch = max(spec.batch_size, EVALUATION_BATCH)
        self.optimizer = make_optimizer(network, spec)
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.scaler = loss_scaler(device, spec.precision)
        self.average = moving_average(network, spec.ema)
        self.order = torch.Generator().manual_seed(seed)
        self.order_before = self.order.get_state()
        self.curve: list[float] = []
        self.losses: list[float] = []
        self.step = 0
        # Losses are not negative, so the sum stays infinite or NaN once one is.
        self.total = torch.zeros((), device=device, dtype=torch.float32)
        self.reported = 0

    def run(
        self,
        report: Callable[[int, float], None] | None,
        checkpoint: Checkpoint | None,
        stop: Callable[[], bool],
    ) -> TrainingResult:
        """Train to the end; see ``train``."""
        safe = SafeState(checkpoint, self.state())
        safe.resume(self.restore)
        self._tell(report)
        while len(self.curve) < self.spec.epochs:
            try:
                loss = self._train_epoch(stop)
                if not math.isfinite(loss):
                    return self._result("diverged", safe)
                value = self._validate()
                if not math.isfinite(value):
                    return self._result("diverged", safe)
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
                self._halve()
                self.restore(safe.state)
                continue
            except TrainingStopped:
                safe.keep(self.state)
                raise
            self.losses.append(loss)
            self.curve.append(value)
            collapsed = self._has_collapsed()
            if safe.is_due and not collapsed:
                safe.keep(self.state)
            self._tell(report)
            if collapsed:
                return self._result("diverged", safe, collapsed=True)
            if stop() and len(self.curve) < self.spec.epochs:
                safe.keep(self.state)
                raise TrainingStopped("the training was asked to stop")
        if self.average is not None:
            self.network.load_state_dict(self.average.module.state_dict())
        return self._result("completed", safe)

    def _tell(self, report: Callable[[int, float], None] | None) -> None:
        """Report the new epochs."""
        while self.reported < len(self.curve):
            self.reported += 1
            if report is not None:
                report(self.reported - 1, self.curve[self.reported - 1])

    def _train_epoch(self, stop: Callable[[], bool]) -> float:
        """Train to the end of the epoch; return its mean loss, early if it is not finite."""
        epoch = len(self.curve)
        order = torch.randperm(len(self.samples), device="cpu", generator=self.order)
        order = order[self.step * self.batch_size : self.batches * self.batch_size]
        self.network.train()
        draw = (self.seed, epoch)
        for inputs, targets in self.samples.batches(self.batch_size, order=order, draw=draw):
            if not self._train_step(inputs, targets, epoch):
                return math.nan
            if stop() and self.step < self.batches:
                raise TrainingStopped("the training was asked to stop")
        loss = float(self.total) / self.batches
        if math.isfinite(loss):
            self.step = 0
            self.total = torch.zeros_like(self.total)
            self.order_before = self.order.get_state()
        return loss

    def _train_step(self, inputs: Inputs, targets: Tensor, epoch: int) -> bool:
        """Make a step; if the loss is not finite, return False without changing the weights."""
        spec, done = self.spec, self.step + 1
        rate = learning_rate(
            spec, step=epoch * self.batches + self.step, steps=spec.epochs * self.batches
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        look = is_cheap_to_read(self.device) or done % STEPS_BETWEEN_LOOKS == 0
        if spec.channels_last:
            inputs = mapped(inputs, channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(targets), self.micro_batch):
            piece = slice(start, start + self.micro_batch)
            its = targets[piece]
            with autocast(self.device, spec.precision):
                returned = call(self.forward, rows(inputs, piece))
            outputs = outputs_of(returned)
            loss = mean_loss(outputs, its, self.loss, label_smoothing=spec.label_smoothing)
            if len(its) < len(targets):
                loss = loss * share(its, targets, self.loss)
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

    def _validate(self) -> float:
        """Return the validation metric, with averaged weights if there are any."""
        return evaluate(
            self.network if self.average is None else self.average,
            self.validation,
            batch_size=self.evaluation_batch,
            device=self.device,
            precision=self.spec.precision,
            metric=self.metric,
            loss=self.loss,
        )

    def _has_collapsed(self) -> bool:
        """Tell whether accuracy and loss stayed at chance."""
        epochs = self.spec.collapse_epochs
        if not epochs or len(self.curve) < epochs:
            return False
        chance = 1 / self.data.num_classes
        # Three standard deviations of guessing.
        bound = chance + 3 * math.sqrt(chance * (1 - chance) / len(self.validation))
        guessing = 0.99 * math.log(self.data.num_classes)
        return max(self.curve[-epochs:]) <= bound and min(self.losses[-epochs:]) > guessing

    def _result(
        self,
        status: Literal["completed", "diverged"],
        safe: SafeState,
        *,
        collapsed: bool = False,
    ) -> TrainingResult:
        safe.delete()
        if self.micro_batch < min(self.spec.micro_batch or self.batch_size, self.batch_size):
            self.notes.append(
                f"too little memory for {self.batch_size} {self.data.what} at a time: "
                f"{self.micro_batch}"
            )
        diverged, worst = status == "diverged", self.data.worst(self.metric)
        return TrainingResult(
            status=status,
            curve=tuple(self.curve),
            train_loss=tuple(self.losses),
            value=worst if diverged and worst is not None else self.curve[-1],
            seconds=time.perf_counter() - self.started,
            epoch_of_divergence=len(self.curve) - collapsed if diverged else None,
            collapsed=collapsed,
            notes=(*self.notes, *safe.notes),
            saving=safe.seconds,
        )

    # --- going back and going on --------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that determines the rest of the training."""
        cuda = self.device.type == "cuda"
        copied: dict[str, Any] = on_cpu(
            {
                "network": dict(self.network.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "order": self.order_before,
                "random": torch.get_rng_state(),
                "device_random": torch.cuda.get_rng_state(self.device) if cuda else None,
                "total": self.total,
                "step": self.step,
                "curve": self.curve,
                "losses": self.losses,
                "micro_batch": self.micro_batch,
            }
        )
        return copied

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state, without changing it."""
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

    def _halve(self) -> None:
        """Halve the micro-batch."""
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.evaluation_batch = math.ceil(self.evaluation_batch / 2)
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_cheap_to_read(device: torch.device) -> bool:
    """Tell whether reading a value from a device needs no waiting."""
    return device.type == "cpu"


def _never() -> bool:
    return False

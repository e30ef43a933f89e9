"""Training one network: a plain PyTorch loop, deterministic on a CPU.

A batch is a slice of a random permutation. A training loss that is not finite ends the run, and
that is a result ("diverged"), not an error. Too little memory halves what is passed through at a
time. A checkpoint lets a killed training go on where it was.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bo_act.data.loading import Data
from bo_act.errors import NetworkError
from bo_act.io import reason
from bo_act.specs import TrainingSpec
from bo_act.specs.base import checked_seed
from bo_act.torch_state import plain_torch
from bo_act.training.checkpoint import Checkpoint, warn_of
from bo_act.training.compiled import compiled
from bo_act.training.devices import (
    cpu_threads,
    deterministic_kernels,
    pick_device,
    rng_devices,
)
from bo_act.training.evaluation import EVALUATION_BATCH, check_network, evaluate, measure
from bo_act.training.optimization import Precision
from bo_act.training.outcomes import TrainingStopped
from bo_act.training.run import Run

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

WORTH_SAVING = 1.0  # seconds of training that are rather repeated than saved
SAVING_SHARE = 0.02  # of the time, at most, goes into checkpoints


@dataclass(frozen=True)
class TrainingResult:
    """What came of one training run.

    Attributes:
        status: ``diverged`` where a training loss was infinite or NaN, or where accuracy and
            loss stayed at chance for ``collapse_epochs``; else ``completed``, at whatever accuracy.
        curve: validation accuracy after each finished epoch, a fraction.
        train_loss: mean training loss of each finished epoch.
        validation_accuracy: the last epoch's, or the chance level of a diverged run.
        seconds: wall time of training and validation; of a run that was gone on with, from there.
        epoch_of_divergence: the epoch, from 0, in which the loss ceased to be finite, or in which
            accuracy was taken to stay at chance.
        collapsed: it was the accuracy.
        notes: what was not done as the recipe says.
        saving: seconds of ``seconds`` that went into checkpoints.
    """

    status: Literal["completed", "diverged"]
    curve: tuple[float, ...]
    train_loss: tuple[float, ...]
    validation_accuracy: float
    seconds: float
    epoch_of_divergence: int | None = None
    collapsed: bool = False
    notes: tuple[str, ...] = ()
    saving: float = 0.0


def train(
    network: nn.Module,
    data: Data,
    spec: TrainingSpec,
    *,
    seed: int,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a network in place and measure its validation accuracy after each epoch.

    The last, partial batch of each epoch is left out, unless it is the only one. torch's global
    random state, thread count and flags are left as they were.

    Args:
        network: from images (b, c, h, w) to logits (b, num_classes); it ends on the device.
        data: training and validation images.
        spec: how to train.
        seed: of the order of the images and of dropout. On a CPU, the same network, data, spec
            and seed give the same numbers bit for bit.
        report: called after each epoch with the epoch, from 0, and the validation accuracy; of a
            training that is gone on with, for the epochs before as well. What it raises ends the
            training and passes through.
        checkpoint: where the state is kept; gone on from where there is one, deleted at the end.
        stop: asked after each step; where it says so, the state is saved and the training ends.

    Raises:
        SpecError: the device is not there.
        NetworkError: the network does not fit the data, has nothing to train, or has no
            deterministic kernels where those were asked for.
        TrainingStopped: ``stop`` said so.
        torch.OutOfMemoryError: not even a single image at a time fits.
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
        training = _Training(network, data, spec, seed=seed, device=device)
        training.report, training.stop, training.checkpoint = report, stop, checkpoint
        try:
            return training.to_the_end()
        except RuntimeError as error:
            if spec.deterministic and "deterministic" in str(error):
                cause = " ".join(str(error).split())[:300]
                raise NetworkError(
                    f"training.deterministic: the network has no such kernels here: {cause}"
                ) from error
            raise


class _Training:
    """One call of ``train``."""

    def __init__(
        self, network: nn.Module, data: Data, spec: TrainingSpec, *, seed: int, device: torch.device
    ) -> None:
        self.started = time.perf_counter()
        self.data, self.spec = data, spec
        network.to(device)
        if spec.channels_last:
            network.to(memory_format=torch.channels_last)
        images = data.train.to(device)
        self.validation = data.validation.to(device)
        check_network(network, images, num_classes=data.num_classes, precision=spec.precision)
        forward, note = compiled(network, images, spec)
        self.notes = [] if note is None else [note]
        self.run = Run(
            network,
            images,
            spec,
            seed=seed,
            forward=forward,
            evaluation_batch=max(spec.batch_size, EVALUATION_BATCH),
        )
        self.report: Callable[[int, float], None] | None = None
        self.stop: Callable[[], bool] | None = None
        self.checkpoint: Checkpoint | None = None
        self.reported = 0
        self.saving = self.last_saving = 0.0
        self.saved_at = self.started
        self.unsaved = False
        self.safe: dict[str, Any] = self.run.state()  # to go back to

    def to_the_end(self) -> TrainingResult:
        run = self.run
        self._go_on()
        self._report()
        while len(run.curve) < self.spec.epochs:
            try:
                ended = self._epoch()
            except torch.OutOfMemoryError:
                if not run.halve():
                    raise
                self._after_too_little_memory()
                continue
            except TrainingStopped:
                self._save()
                raise
            if ended is not None:
                return ended
            self._save_if_due()
            self._report()
            if self.stop is not None and self.stop() and len(run.curve) < self.spec.epochs:
                self._save()
                raise TrainingStopped("the training was asked to stop")
        run.finish()
        return self._result("completed", run.curve[-1])

    def _epoch(self) -> TrainingResult | None:
        """Train an epoch and validate; a result where that was the end of it."""
        run = self.run
        loss = run.train_epoch(self.stop)
        if not math.isfinite(loss):
            return self._result("diverged", 1 / self.data.num_classes)
        accuracy = run.validate(self.validation)
        run.losses.append(loss)
        run.curve.append(accuracy)
        if self._has_collapsed():
            self._report()
            return self._result("diverged", 1 / self.data.num_classes, collapsed=True)
        return None

    def _has_collapsed(self) -> bool:
        """Tell whether accuracy and loss have stayed where guessing has them."""
        epochs = self.spec.collapse_epochs
        curve, losses = self.run.curve, self.run.losses
        if not epochs or len(curve) < epochs:
            return False
        chance = 1 / self.data.num_classes
        # Three standard deviations of guessing.
        bound = chance + 3 * math.sqrt(chance * (1 - chance) / len(self.validation))
        guessing = 0.99 * math.log(self.data.num_classes)
        return max(curve[-epochs:]) <= bound and min(losses[-epochs:]) > guessing

    def _result(
        self,
        status: Literal["completed", "diverged"],
        accuracy: float,
        *,
        collapsed: bool = False,
    ) -> TrainingResult:
        run = self.run
        if self.checkpoint is not None:
            self.checkpoint.delete()
        if run.micro_batch < min(self.spec.micro_batch or run.batch_size, run.batch_size):
            self.notes.append(
                f"too little memory for {run.batch_size} images at a time: {run.micro_batch}"
            )
        diverged = len(run.curve) - collapsed if status == "diverged" else None
        return TrainingResult(
            status=status,
            curve=tuple(run.curve),
            train_loss=tuple(run.losses),
            validation_accuracy=accuracy,
            seconds=time.perf_counter() - self.started,
            epoch_of_divergence=diverged,
            collapsed=collapsed,
            notes=tuple(self.notes),
            saving=self.saving,
        )

    def _report(self) -> None:
        """Report the epochs that were not reported yet."""
        while self.reported < len(self.run.curve):
            epoch = self.reported
            self.reported += 1
            if self.report is not None:
                self.report(epoch, self.run.curve[epoch])

    # --- going back and going on --------------------------------------------------------------

    def _after_too_little_memory(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.run.restore(self.safe)

    def _go_on(self) -> None:
        state = self.checkpoint.load() if self.checkpoint is not None else None
        if self.checkpoint is None or state is None:
            return
        try:
            self.run.restore(state)
            self.safe = state
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            warn_of(self.checkpoint.path, " ".join(str(error).split())[:200])
            self.run.restore(self.safe)

    def _save_if_due(self) -> None:
        since = time.perf_counter() - self.saved_at
        if since >= max(WORTH_SAVING, self.last_saving / SAVING_SHARE):
            self._save()

    def _save(self) -> None:
        began = time.perf_counter()
        self.safe = self.run.state()
        if self.checkpoint is not None:
            try:
                self.checkpoint.save(self.safe)
            except OSError as error:
                self._tell_unsaved(self.checkpoint, error)
        self.saved_at = time.perf_counter()
        self.last_saving = self.saved_at - began
        self.saving += self.last_saving

    def _tell_unsaved(self, checkpoint: Checkpoint, error: OSError) -> None:
        """Warn of the first checkpoint that cannot be written; the next ones are tried as well."""
        if self.unsaved:
            return
        self.unsaved = True
        why = reason(error, "do without")
        note = f"no checkpoint can be written to {checkpoint.path.parent}: {why}"
        self.notes.append(note)
        warnings.warn(f"{note}; training goes on, and one that is killed starts over", stacklevel=2)

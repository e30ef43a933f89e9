"""A training's state on disk, so that a killed one goes on where it was.

Tensors, numbers and texts alone: files are read with ``weights_only``, which runs no code of
theirs. A kill leaves the one before, and a damaged one is not used.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bo_act.io import one_line, read_checked, reason, remove_abandoned, write_checked

_FORMAT = 1
WORTH_SAVING = 1.0  # seconds of training that are rather repeated than saved
SAVING_SHARE = 0.02  # of the time, at most, goes into checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the state of one training.

    Attributes:
        path: the file; its folder is made when something is saved.
        key: of everything that the training follows from. The state of another one is not read.
    """

    path: Path
    key: str

    def save(self, state: dict[str, Any]) -> None:
        """Write a state in place of the one before.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        # In memory first: on a full disk, torch's own writer does not say what is wrong.
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "key": self.key, "state": state}, buffer)
        write_checked(self.path, buffer.getbuffer(), sync=True)

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved; None, with a warning, where it cannot be used."""
        if not self.path.is_file():
            return None
        try:
            packed = io.BytesIO(read_checked(self.path))
            content = torch.load(packed, map_location="cpu", weights_only=True)
            if content["format"] == _FORMAT and content["key"] == self.key:
                state: dict[str, Any] = content["state"]
                return state
            why = "it belongs to another training"
        except Exception as error:  # whatever it is, the training can do without
            why = one_line(error)
        warn_of(self.path, why)
        return None

    def delete(self) -> None:
        """Remove the file; the training is over, and a file that stays does it no harm."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        remove_abandoned(self.path.parent)


class SafeState:
    """The state that a training can go back to: in memory and, with a checkpoint, on disk.

    Attributes:
        state: the last one that was kept.
        seconds: that keeping took.
        notes: why no checkpoint can be written, where that is so.
    """

    def __init__(self, checkpoint: Checkpoint | None, state: dict[str, Any]) -> None:
        self.checkpoint, self.state = checkpoint, state
        self.notes: list[str] = []
        self.seconds = self.last = 0.0
        self.kept_at = time.perf_counter()

    def resume(self, restore: Callable[[dict[str, Any]], None]) -> None:
        """Go back to the checkpoint, where there is one that fits."""
        state = None if self.checkpoint is None else self.checkpoint.load()
        if self.checkpoint is None or state is None:
            return
        try:
            restore(state)
            self.state = state
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            warn_of(self.checkpoint.path, " ".join(str(error).split())[:200])
            restore(self.state)

    @property
    def is_due(self) -> bool:
        """Whether more was trained than one would repeat."""
        since = time.perf_counter() - self.kept_at
        return since >= max(WORTH_SAVING, self.last / SAVING_SHARE)

    def keep(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep a state in place of the one before.

        The first checkpoint that cannot be written is warned of; the next ones are tried as well.
        """
        began = time.perf_counter()
        self.state = state()
        if self.checkpoint is not None:
            try:
                self.checkpoint.save(self.state)
            except OSError as error:
                if not self.notes:
                    why, folder = reason(error, "do without"), self.checkpoint.path.parent
                    self.notes.append(f"no checkpoint can be written to {folder}: {why}")
                    warnings.warn(
                        f"{self.notes[0]}; training goes on, and one that is killed starts over",
                        stacklevel=2,
                    )
        self.kept_at = time.perf_counter()
        self.last = self.kept_at - began
        self.seconds += self.last

    def delete(self) -> None:
        """Remove the checkpoint; the training is over."""
        if self.checkpoint is not None:
            self.checkpoint.delete()


def warn_of(path: Path, why: str) -> None:
    """Say that a checkpoint is not used."""
    warnings.warn(f"the checkpoint {path} is not used, training starts over: {why}", stacklevel=3)


def on_cpu(state: Any) -> Any:
    """Return a copy of a state with its tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state

"""Checkpoints: a training's state on disk, so that a killed training can resume.

They hold only tensors, numbers and texts: ``weights_only`` reads them without running code. A
killed write leaves the previous checkpoint, and damaged ones are ignored.
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
WORTH_SAVING = 1.0  # seconds of training that are cheaper to repeat than to save
SAVING_SHARE = 0.02  # largest share of the time for checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A file with the state of one training.

    Attributes:
        path: the file; the first save makes its folder.
        key: of everything that determines the training; states with another key are ignored.
    """

    path: Path
    key: str

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        # In memory first: torch's own writer has no clear error for a full disk.
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "key": self.key, "state": state}, buffer)
        write_checked(self.path, buffer.getbuffer(), sync=True)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None, with a warning if it cannot be used."""
        if not self.path.is_file():
            return None
        try:
            packed = io.BytesIO(read_checked(self.path))
            content = torch.load(packed, map_location="cpu", weights_only=True)
            if content["format"] == _FORMAT and content["key"] == self.key:
                state: dict[str, Any] = content["state"]
                return state
            why = "it belongs to another training"
        except Exception as error:  # the training can do without
            why = one_line(error)
        warn_of(self.path, why)
        return None

    def delete(self) -> None:
        """Remove the file of a finished training; a leftover is harmless."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        remove_abandoned(self.path.parent)


class SafeState:
    """The state to resume a training from: in memory and, with a checkpoint, on disk.

    Attributes:
        state: the last saved one.
        seconds: spent on saving.
        notes: why no checkpoint can be written, if so.
    """

    def __init__(self, checkpoint: Checkpoint | None, state: dict[str, Any]) -> None:
        self.checkpoint, self.state = checkpoint, state
        self.notes: list[str] = []
        self.seconds = self.last = 0.0
        self.kept_at = time.perf_counter()

    def resume(self, restore: Callable[[dict[str, Any]], None]) -> None:
        """Restore the checkpoint, if there is a matching one."""
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
        """Whether there is more training to lose than is cheap to repeat."""
        since = time.perf_counter() - self.kept_at
        return since >= max(WORTH_SAVING, self.last / SAVING_SHARE)

    def keep(self, state: Callable[[], dict[str, Any]]) -> None:
        """Replace the saved state.

        If a checkpoint cannot be written, bo-act warns once and continues; later ones are tried
        again.
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
                        f"{self.notes[0]}; training continues; if it is killed, it starts over",
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
    """Warn of an unused checkpoint."""
    warnings.warn(f"the checkpoint {path} is ignored; training starts over: {why}", stacklevel=3)


def on_cpu(state: Any) -> Any:
    """Return a copy of a state with its tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state

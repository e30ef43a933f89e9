"""A training's state on disk, so that a killed one goes on where it was.

Tensors, numbers and texts alone: files are read with ``weights_only``, which runs no code of
theirs. A kill leaves the one before, and a damaged one is not used.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bo_act.io import one_line, read_checked, remove_abandoned, write_checked

_FORMAT = 1


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

"""A training's state on disk, so that a killed one goes on where it was.

Tensors, numbers and texts alone: files are read with ``weights_only``, which runs no code of
theirs. They are written under a temporary name and renamed, so that a kill leaves the one before.
"""

from __future__ import annotations

import pickle
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save({"format": _FORMAT, "key": self.key, "state": state}, self._temporary)
            self._temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)  # half a file fills the disk as well
            raise OSError(_one_line(error)) from error

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved; None, with a warning, where it cannot be used."""
        if not self.path.is_file():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content["format"] == _FORMAT and content["key"] == self.key:
                state: dict[str, Any] = content["state"]
                return state
            why = "it belongs to another training"
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            why = _one_line(error)
        except (pickle.UnpicklingError, AttributeError, IndexError) as error:
            why = _one_line(error)
        warn_of(self.path, why)
        return None

    def delete(self) -> None:
        """Remove the file; the training is over, and a file that stays does it no harm."""
        for path in (self.path, self._temporary):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")


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


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

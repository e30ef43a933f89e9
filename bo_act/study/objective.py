"""A user's own training function in place of ours."""

from __future__ import annotations

import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial

from bo_act.activations.expressions import Expression
from bo_act.activations.module import Activation
from bo_act.errors import BoActError, SpecError
from bo_act.io import digest
from bo_act.training.outcomes import Diverged
from bo_act.user_files import load_function

EXPECTED = "def objective(trial, activation, *, seed, device, ...) -> float"

_MACHINE = (optuna.TrialPruned, BoActError, Diverged, RuntimeError, MemoryError, OSError)


@dataclass(frozen=True)
class Objective:
    """A function of a user's file, which trains a network and returns what is maximized.

    Attributes:
        path: the file.
        source_hash: sha256 of its content, see ``UserFile``.
        function: called with the trial, ``activation`` (fresh modules, or a mapping of names to
            such), and what it asks for by name of ``seed``, ``device``, ``settings``, ``network``
            and ``data``.
    """

    path: Path
    source_hash: str
    function: Callable[..., Any]

    @classmethod
    def load(cls, name: str) -> Objective:
        """Read ``"my_train.py:objective"``.

        Raises:
            SpecError: there is no such file or function, or it cannot be imported.
        """
        file, function = load_function(name, key="objective", expected=EXPECTED, error=SpecError)
        return cls(file.path, digest(file.content), function)

    def __call__(
        self,
        trial: Trial,
        function: Expression | Mapping[str, Expression],
        context: Mapping[str, Any],
    ) -> float:
        """Call the function; NaN where it says that the training diverged.

        Raises:
            SpecError: it asks for what is not there, fails, or returns no number.
            optuna.TrialPruned, RuntimeError, MemoryError, OSError: it raised that.
        """
        activation: Any = (
            Activation(function)
            if isinstance(function, Expression)
            else {name: Activation(one) for name, one in function.items()}
        )
        asked = self._asked(context)
        try:
            with warnings.catch_warnings():
                # A trial that was taken over has reported some steps before.
                warnings.filterwarnings("ignore", message="The reported value is ignored")
                value = self.function(trial, activation, **asked)
        except Diverged:
            return math.nan
        except _MACHINE:
            raise
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise SpecError(
                f"{self.path}: the objective failed: {type(error).__name__}: {error} "
                f"({Path(line.filename).name}, line {line.lineno})"
            ) from error
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"{self.path}: expected the objective to return a number to be maximized, got "
                f"{type(value).__name__}"
            ) from error

    def _asked(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the function asks for by name."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return dict(context)
        missing = [
            one.name for one in parameters if one.default is one.empty and one.name not in context
        ]
        if missing:
            raise SpecError(
                f"{self.path}: the objective asks for {', '.join(missing)}; in this study there "
                f"are {', '.join(context)} (network and data need [model] and [data])"
            )
        return {one.name: context[one.name] for one in parameters if one.name in context}

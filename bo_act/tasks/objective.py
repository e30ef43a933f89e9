"""A user's own training function."""

from __future__ import annotations

import inspect
import math
import numbers
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from bo_act.activations.expressions import Expression
from bo_act.activations.module import activations_of
from bo_act.errors import SpecError
from bo_act.io import digest
from bo_act.training.outcomes import Diverged
from bo_act.user_code.failures import clean
from bo_act.user_code.files import is_required, load_function, takes_any

EXPECTED = "def objective(trial, activation, *, seed, device, ...) -> float"
_RETURNED = (
    "a number, a list of one for each seed or data set, or a dict of such with 'validation' and "
    "perhaps 'test'"
)


@dataclass(frozen=True)
class Measured:
    """The result of an objective.

    Attributes:
        value: for the search, the mean if there are several; NaN if the training diverged.
        values: of several runs; empty for a single one.
        test: on test data, hidden from the search; None if there are none.
    """

    value: float
    values: tuple[float, ...] = ()
    test: float | None = None

    @property
    def variance(self) -> float | None:
        """Of the mean of several runs; None for a single one."""
        count = len(self.values)
        if count < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.variance(self.values) / count


@dataclass(frozen=True)
class Objective:
    """A function in a user's file that trains a network and returns its value.

    Attributes:
        path: the file.
        source_hash: sha256 of its content, see ``UserFile``.
        function: called with the trial, ``activation`` (fresh modules, or a mapping of names to
            them), and, as its signature asks, ``seed``, ``device``, ``settings``, ``network`` and
            ``data``.
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
        options: Mapping[str, Any] | None = None,
    ) -> Measured:
        """Call the function; NaN if it reports a diverged training.

        Args:
            trial: to evaluate.
            function: the activation function, or several by name.
            context: available arguments by name.
            options: of its activation modules.

        Raises:
            SpecError: it asks for unknown arguments, or returns an unexpected value.
            BaseException: from the function itself.
        """
        activation: Any = activations_of(function, options or {})
        asked = self._asked(context)
        try:
            with warnings.catch_warnings():
                # A trial taken over has reported some steps before.
                warnings.filterwarnings("ignore", message="The reported value is ignored")
                value = self.function(trial, activation, **asked)
        except Diverged:
            return Measured(math.nan)
        try:
            return _as_measured(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise SpecError(
                f"{self.path}: expected the objective{self._line} to return {_RETURNED}, got "
                f"{_shown(value)}"
            ) from None

    def asks_for(self, name: str) -> bool:
        """Tell whether the function takes an argument of that name, or any."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return takes_any(parameters) or name in (parameter.name for parameter in parameters)

    def check(self, context: Mapping[str, Any]) -> None:
        """Check that the function can be called.

        Args:
            context: available arguments by name.

        Raises:
            SpecError: it takes no trial and activation, or asks for unknown arguments.
        """
        asked = self._asked(context)
        try:
            inspect.signature(self.function).bind(None, None, **asked)
        except TypeError as error:
            raise SpecError(
                f"{self.path}: expected {EXPECTED}, got an objective{self._line} with other "
                f"arguments: {error}"
            ) from None
        for kind in ("coroutine", "generator", "asyncgen"):
            if getattr(inspect, f"is{kind}function")(self.function):
                raise SpecError(
                    f"{self.path}: expected the objective{self._line} to return a number, but it "
                    f"is a {kind} function; remove async and yield"
                )

    @property
    def _line(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return "" if code is None else f" (line {code.co_firstlineno})"

    def _asked(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments in the function's signature."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        if takes_any(parameters):
            return dict(context)
        missing = [p.name for p in parameters if is_required(p) and p.name not in context]
        if missing:
            raise SpecError(
                f"{self.path}: the objective asks for {', '.join(missing)}; this study offers "
                f"{', '.join(context)} (network and data need [model] and [data])"
            )
        return {p.name: context[p.name] for p in parameters if p.name in context}


def _as_measured(value: Any) -> Measured:
    """Read the return value of an objective.

    Raises:
        TypeError, ValueError, OverflowError, RuntimeError: it is something else.
    """
    if not isinstance(value, Mapping):
        values = _as_numbers(value)
        return Measured(_mean(values), values if len(values) > 1 else ())
    if "validation" not in value or value.keys() - {"validation", "test"}:
        raise ValueError("other keys")
    values, test = _as_numbers(value["validation"]), value.get("test")
    return Measured(
        _mean(values),
        values if len(values) > 1 else (),
        None if test is None else _mean(_as_numbers(test)),
    )


def _as_numbers(value: Any) -> tuple[float, ...]:
    """Return one number, or those of a list, tuple, or array of one dimension."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("nothing")
        return tuple(map(_as_number, value))
    return (_as_number(value),)


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _as_number(value: Any) -> float:
    """Return a number, or a tensor or array of one element, as a float.

    Raises:
        TypeError, ValueError, OverflowError, RuntimeError: it is not a number, or beyond all
            floats.
    """
    if hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item()
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    # float() accepts texts; a bool is a comparison, not a value.
    if isinstance(value, str | bytes | bytearray | bool) or is_complex:
        raise TypeError("not a real number")
    return float(value)


def _shown(value: Any) -> str:
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {kind} of {value.dtype} and the shape {tuple(shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(repr, value)) or 'nothing'}"[:100]
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_shown, value[:3])) or "nothing"
        return f"a {kind} of {inside}{', ...' if len(value) > 3 else ''}"
    if isinstance(value, str | bool | complex):
        return f"{kind} {clean(repr(value))[:60]}"
    return f"{kind} (beyond all floats)" if isinstance(value, numbers.Real) else kind

"""A user's own method: a function that makes an Optuna sampler for each search."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, BoActError
from bo_act.user_code.failures import USERS, Failure, is_users_file, shown_path
from bo_act.user_code.files import UserFile, is_required, load_function, takes_any

EXPECTED = "def make_sampler(space, features, seed) -> optuna.samplers.BaseSampler"
_NAMES = ("space", "features", "seed")


def _nothing() -> None:
    pass


_made: WeakSet[BaseSampler] = WeakSet()  # in this process


@dataclass(frozen=True)
class OwnSampler:
    """A function that makes a sampler for each search.

    Attributes:
        name: of the function.
        file: of the function, loaded where it is called; None for a function object.
        given: the function object, if any.
    """

    name: str
    file: UserFile | None = None
    given: Callable[..., Any] = _nothing

    @classmethod
    def load(cls, name: str) -> OwnSampler:
        """Read ``"my_method.py:make_sampler"``.

        Raises:
            BenchmarkError: there is no such file or function, or it cannot be imported.
        """
        file, _ = load_function(name, key="methods", expected=EXPECTED, error=BenchmarkError)
        return cls(name.rpartition(":")[2], file)

    @property
    def function(self) -> Callable[..., Any]:
        """The function, loaded."""
        if self.file is not None:
            return getattr(self.file.load(), self.name)  # type: ignore[no-any-return]
        return self.given

    @property
    def travels(self) -> bool:
        """Whether it can be pickled: not a lambda, a closure or a function of a notebook."""
        if self.file is not None:
            return True
        try:
            packed = pickle.dumps(self.given)
        except Exception:  # a user's class may raise anything
            return False
        return b"__main__" not in packed or hasattr(sys.modules["__main__"], "__file__")

    def checked(self) -> OwnSampler:
        """Return this, after a check of its arguments.

        Raises:
            BenchmarkError: it asks for unknown arguments.
        """
        self.asked()
        return self

    def asked(self) -> list[str]:
        """Return the arguments in the function's signature.

        Raises:
            BenchmarkError: it asks for unknown arguments.
        """
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):  # C functions may have no signature
            return []
        if takes_any(parameters):
            return list(_NAMES)
        for parameter in filter(is_required, parameters):
            if parameter.name not in _NAMES or parameter.kind is parameter.POSITIONAL_ONLY:
                how = " by position" if parameter.kind is parameter.POSITIONAL_ONLY else ""
                raise BenchmarkError(
                    f"{self._called} asks for {parameter.name}{how}; bo-act passes space, features "
                    f"and seed by name: expected {EXPECTED}"
                )
        by_name = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
        return [name for name in by_name if name in _NAMES]

    def make(self, benchmark: Benchmark, *, seed: int) -> BaseSampler:
        """Return a sampler for one search.

        Raises:
            BenchmarkError: the function returns something else, or a used sampler.
            BaseException: from the function.
        """
        known = {"space": benchmark.space, "features": benchmark.features, "seed": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = self.function(**{name: known[name] for name in self.asked()})
        if not isinstance(sampler, BaseSampler):
            kind = type(sampler).__name__
            got = f"the class {sampler.__name__}" if isinstance(sampler, type) else kind
            raise BenchmarkError(f"expected {self._called} to return an Optuna sampler, got {got}")
        if sampler in _made:
            raise BenchmarkError(
                f"expected {self._called} to make a new sampler for each search, got one from an "
                "earlier search"
            )
        _made.add(sampler)
        return sampler

    @contextmanager
    def failing(self, run: object) -> Iterator[None]:
        """Turn errors inside into one line, with the place in the user's file.

        Args:
            run: of the error.

        Raises:
            BenchmarkError: instead of the original error.
        """
        try:
            yield
        except USERS as error:
            failure = Failure.of(error)
            if isinstance(error, BoActError) and error.__cause__ is None:
                failure = replace(failure, type="")
            if not failure.file:
                file, line = self._place
                failure = replace(failure, file=file, line=line)
            raise BenchmarkError(
                f"the sampler of {run} failed: {failure}; if you gave a folder for the runs "
                "(out), finished runs are saved, and the same call resumes after you fix this"
            ) from error

    @property
    def _called(self) -> str:
        file, line = self._place
        return f"{self.name} ({file}, line {line})" if file else self.name

    @property
    def _place(self) -> tuple[str, int | None]:
        function: Any = inspect.unwrap(self.function)
        function = getattr(function, "func", function)  # of a partial
        try:
            file = inspect.getsourcefile(function) or ""
            line = inspect.getsourcelines(function)[1]
        except (OSError, TypeError):  # no file, or a callable object
            file = ""
        if file and is_users_file(file):
            return shown_path(file), line
        return ("", None) if self.file is None else (shown_path(str(self.file.path)), 1)

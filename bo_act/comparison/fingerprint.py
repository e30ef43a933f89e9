"""Hash of a user's function, with all the code that it runs, to identify its saved runs.

A function given as an object is identified by its code and everything it uses: its file, with the
imported files beside it, its closure, its defaults, and its global names; the user's own functions
and classes among these by the same rule. Libraries are identified by name.
"""

from __future__ import annotations

import dis
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from pydantic import BaseModel

from bo_act.io import digest
from bo_act.user_code.failures import is_users_file
from bo_act.user_code.files import UserFile

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), slice)
_WRAPPED: Mapping[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    property: ("fget", "fset", "fdel"),
    MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}


class NotToldApartError(Exception):
    """A function uses something without an identity; the text names it."""


def fingerprint(function: Callable[..., Any]) -> str:
    """Return a hash of a function with all that it uses.

    Raises:
        NotToldApartError: it uses something that may change unnoticed.
    """
    return digest(repr(_Reader().read(function, "it")))


class _Reader:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # keeps objects alive, so that ids stay unique

    def read(self, value: Any, name: str) -> Any:
        """Return nested tuples of texts and numbers that identify a value."""
        if isinstance(value, _PLAIN) and type(value).__module__ == "builtins":
            return type(value).__name__, repr(value)
        if id(value) in self.seen:
            return "again", self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        return type(value).__qualname__, *self._parts(value, name)

    def _parts(self, value: Any, name: str) -> Iterator[Any]:
        if isinstance(value, tuple | list):
            yield from (self.read(item, name) for item in value)
        elif isinstance(value, set | frozenset):
            yield from sorted(repr(self.read(item, name)) for item in value)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield self.read(key, name), self.read(item, str(key))
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            yield value.dtype.str, value.shape, digest(value.tobytes())
        elif isinstance(value, Path | Enum | np.dtype):
            yield repr(value)
        elif isinstance(value, BaseModel):
            yield value.model_dump_json()
        elif isinstance(value, ModuleType):
            yield value.__name__, _content(getattr(value, "__file__", None))
        else:
            yield from self._code_of(value, name)

    def _code_of(self, value: Any, name: str) -> Iterator[Any]:
        if (known := _name_in_library(value)) is not None:
            yield known
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value) if _is_users(value) else [_named(value)]
        elif (kind := _WRAPPED.get(type(value))) is not None:
            yield from (self.read(getattr(value, part), name) for part in kind)
        elif inspect.isroutine(value):
            yield _named(value)
        elif _has_attributes_alone(type(value)):
            yield from (self.read(type(value), name), self.read(vars(value), name))
        elif type(value).__module__ != "dataclasses":  # generated code has its own marker
            raise NotToldApartError(f"{name!r} (of the type {type(value).__name__})")

    def _function(self, function: FunctionType) -> Iterator[Any]:
        if not is_users_file(function.__code__.co_filename) and function.__module__ != "__main__":
            yield _named(function)
        else:
            yield from _file_of(function)
            yield self._code(function.__code__)
            yield self.read(_used(function), function.__name__)
        yield self.read((function.__defaults__, function.__kwdefaults__), function.__name__)
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            with_value = cell != type(cell)()  # an empty cell's name is set later
            yield name, self.read(cell.cell_contents, name) if with_value else None

    def _class(self, kind: type) -> Iterator[Any]:
        yield from _file_of(kind)
        yield from (self.read(base, base.__name__) for base in kind.__bases__)
        for name, value in vars(kind).items():
            is_slot = inspect.isdatadescriptor(value) and type(value) not in _WRAPPED
            is_made = name.startswith(("__", "_abc_")) and not isinstance(value, FunctionType)
            if not (is_slot or is_made):
                yield name, self.read(value, name)

    def _code(self, code: CodeType) -> Any:
        """Return the code without its location."""
        constants = tuple(
            self._code(constant)
            if isinstance(constant, CodeType)
            else self.read(constant, code.co_name)
            for constant in code.co_consts
        )
        return code.co_code.hex(), code.co_names, code.co_varnames, constants


def _used(function: FunctionType) -> dict[str, Any]:
    """Return the globals of a function and its inner ones, and the modules they import."""
    used: dict[str, Any] = {}
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        scope: Mapping[str, Any] = function.__globals__
        used |= {name: scope[name] for name in code.co_names if name in scope}
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                used[f"import {step.argval}"] = _content(_origin(str(step.argval)))
    return dict(sorted(used.items()))


def _origin(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def _file_of(value: Any) -> Iterator[str]:
    """Yield the content of the file that a function or class stands in, a program apart.

    A program's file says more than the function does: with how many seeds it is compared, say.
    """
    if value.__module__ != "__main__":
        yield _content(getattr(sys.modules.get(value.__module__), "__file__", None))


def _content(file: str | None) -> str:
    """Return a hash of a user's file and its imported neighbours, ``""`` for others."""
    if file is None or not is_users_file(file) or not Path(file).is_file():
        return ""
    return digest(UserFile.read(Path(file)).content)


def _is_users(value: Any) -> bool:
    name = getattr(value, "__module__", None)
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return name == "__main__" or (file is not None and is_users_file(file))


def _name_in_library(value: Any) -> str | None:
    """Return a library's name for this object."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if not isinstance(name, str) or module is None or _is_users(value):
        return None
    owner = getattr(module, name.partition(".")[0], None)
    for part in name.split(".")[1:]:
        owner = getattr(owner, part, None)
    return f"{module.__name__}.{name}" if owner is value else None


def _has_attributes_alone(kind: type) -> bool:
    """Tell whether all state of an instance is in its ``__dict__``."""
    return _is_users(kind) and all(
        _is_users(cls) and "__slots__" not in vars(cls) for cls in kind.__mro__[:-1]
    )


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

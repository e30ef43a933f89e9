"""Finding calls of activation functions in ``forward`` methods without running them.

The scan reads the compiled code of ``forward`` and of everything it leads to: methods and
properties of the module, base classes, decorators, and functions of the same package. It looks up
names as Python would: in globals, closures and attributes of the module. A method such as ``tanh``
of an unknown object counts as a tensor's. Calls computed at run time (``getattr(functional,
name)``, a dictionary of functions) are not found. Functions with "attention" in their names are
skipped: a tanh there caps the scores.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.dependencies.torch_internals import members_of
from bo_act.networks.calls import FUNCTIONS, GATES, CallWatcher, class_before

_UNKNOWN = object()
"""Some value, perhaps a tensor."""
_OTHER = object()
"""Some value that is no tensor."""
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_CLOSURES = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_NEUTRAL = ("CACHE", "PUSH_NULL", "PRECALL", "EXTENDED_ARG", "NOP")


def calls_in(module: nn.Module) -> list[str]:
    """Return the names of calls, such as ``functional.relu``, in the order of the code."""
    kind = class_before(module)
    if kind.__module__.startswith(("torch.nn.", "bo_act.")):
        return []
    scan = _Scan(module, kind)
    scan.value(vars(module).get("forward", kind.forward), method=True)
    return list(scan.calls)


class _Scan:
    def __init__(self, module: nn.Module, kind: type[nn.Module]) -> None:
        self.module, self.kind = module, kind
        self.package = kind.__module__.partition(".")[0]
        self.calls: dict[str, None] = {}
        self.seen: set[CodeType] = set()
        self.children = {name.rpartition(".")[2] for name, _ in module.named_modules()}

    def value(self, value: Any, *, method: bool = False) -> None:
        """Record a function called by name, or follow it."""
        if isinstance(value, nn.Module):
            if value is not self.module:
                self._outside(value)
        elif isinstance(value, partial):
            self.value(value.func)
        elif isinstance(value, MethodType):
            self.value(value.__func__, method=value.__self__ is self.module)
        elif (name := _named(value)) is not None:
            self.calls.setdefault(name)
        elif isinstance(value, FunctionType):
            home = (value.__module__ or "").partition(".")[0]
            if "attention" in value.__name__:
                return
            if method or (home == self.package and home != "torch"):
                self._follow(value, method=method)

    def _outside(self, function: nn.Module) -> None:
        """Look at a module in a global variable: it may be a single call."""
        x = torch.linspace(-4, 4, 9, device="cpu", dtype=torch.float32)
        try:
            with torch.no_grad(), CallWatcher(lambda *_: False) as watch:
                y = function(x)
            ((_, name),) = watch.calls
            same = torch.equal(y, next(f for f, called in FUNCTIONS.items() if called == name)(x))
        except Exception:  # several calls, none, or not a function of a tensor
            return
        if same:
            self.calls.setdefault(name)

    def _follow(self, function: FunctionType, *, method: bool) -> None:
        if function.__code__ in self.seen:
            return
        self.seen.add(function.__code__)
        if hasattr(function, "__wrapped__"):
            self.value(function.__wrapped__, method=method)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.value(default)
        cells = {}
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # not yet defined
                continue
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        me = arguments[0] if method and arguments else ""
        self._read(function.__code__, function.__globals__, cells, me)

    def _read(
        self, code: CodeType, names: Mapping[str, Any], cells: Mapping[str, Any], me: str
    ) -> None:
        at: Any = _OTHER
        for step in dis.get_instructions(code):
            if step.opname in _NEUTRAL:
                continue
            if step.opname in _GLOBALS:
                at = names.get(step.argval, _OTHER)
                if step.argval == "super":
                    self._bases(code.co_name)
            elif step.opname in _CLOSURES:
                at = self.module if step.argval == me else cells.get(step.argval, _UNKNOWN)
            elif step.opname.startswith("LOAD_FAST"):
                last = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
                at = self.module if last == me else _UNKNOWN
            elif step.opname in _ATTRIBUTES:
                at = self._attribute(at, step.argval)
            else:
                if isinstance(step.argval, CodeType):
                    self._read(step.argval, names, cells, me)
                at = _UNKNOWN
                continue
            inside = isinstance(at, nn.Module) and step.opname in _ATTRIBUTES
            if at is not _UNKNOWN and at is not _OTHER and not inside:
                self.value(at, method=bool(me) and step.opname in _CLOSURES)

    def _bases(self, name: str) -> None:
        for base in self.kind.__mro__:
            if base is nn.Module:
                return
            if isinstance(vars(base).get(name), FunctionType):
                self._follow(vars(base)[name], method=True)

    def _attribute(self, of: Any, name: str) -> Any:
        if of is _UNKNOWN or isinstance(of, Tensor):
            method = getattr(Tensor, name, _UNKNOWN)
            return method if _named(method) and name not in self.children else _UNKNOWN
        if isinstance(of, nn.Module):
            return self._of_a_module(of, name)
        if isinstance(of, ModuleType):
            return getattr(of, name, _OTHER)
        if isinstance(of, type):
            attribute = inspect.getattr_static(of, name, _OTHER)
            bound = isinstance(attribute, staticmethod | classmethod)
            return attribute.__func__ if bound else attribute
        return getattr(of, "__dict__", {}).get(name, _OTHER)

    def _of_a_module(self, of: nn.Module, name: str) -> Any:
        for home in members_of(of):
            if name in home:
                return home[name]
        attribute = inspect.getattr_static(class_before(of), name, _OTHER)
        if of is self.module:
            if isinstance(attribute, property):
                attribute = attribute.fget
            if isinstance(attribute, FunctionType):
                self.value(attribute, method=True)
                return _UNKNOWN
        return attribute.__func__ if isinstance(attribute, staticmethod) else _UNKNOWN


def _named(value: Any) -> str | None:
    try:
        return FUNCTIONS.get(value) or GATES.get(value)
    except TypeError:  # not hashable
        return None

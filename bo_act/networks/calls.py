"""Calls of activation functions in forward methods: watching and redirecting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation as activation_modules
from torch.overrides import TorchFunctionMode

from bo_act.dependencies.torch_internals import without_torch_function
from bo_act.errors import NetworkError
from bo_act.networks.in_place import Reads, is_in_place, store
from bo_act.networks.layers import LEFT


def plain(name: str) -> str:
    """Return the kind of a class or call: ``relu`` of ``ReLU`` and of ``functional.relu_``."""
    kind = name.rpartition(".")[2].lower().replace("_", "")
    return kind.removesuffix("activation") or kind


def _functions(modules: set[str]) -> dict[Any, str]:
    """Return torch's functions of such names."""
    named: dict[Any, str] = {}
    for home, shown in ((functional, "functional"), (torch, "torch"), (Tensor, "Tensor")):
        for name in dir(home):
            if name[0] != "_" and plain(name) in modules and callable(getattr(home, name)):
                named.setdefault(getattr(home, name), f"{shown}.{name}")
    return named


FUNCTIONS = _functions({plain(name) for name in activation_modules.__all__ if name not in LEFT})
"""The calls that are replaced."""
GATES = _functions({"sigmoid", "hardsigmoid"})
"""Calls that stay, and are reported."""
_KINDS = {function: plain(name) for function, name in FUNCTIONS.items()}


class _Redirect(TorchFunctionMode):
    """Redirects calls of activation functions to modules.

    Args:
        activations: by the kinds of calls; other calls run unchanged.
        stores: let in-place calls write their values over the input.
    """

    def __init__(self, activations: nn.ModuleDict, *, stores: bool) -> None:
        super().__init__()
        self.activations, self.stores = activations, stores

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in FUNCTIONS:
            return func(*args, **kwargs)
        if _KINDS[func] not in self.activations:
            with without_torch_function():  # hidden from the outer module, too
                return func(*args, **kwargs)
        activation = self.activations[_KINDS[func]]
        x = args[0] if args else kwargs["input"]
        if _KINDS[func] == "glu":
            value, gate = x.chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
            return value * activation(gate)
        if self.stores and is_in_place(FUNCTIONS[func], kwargs):
            return store(activation, x)
        return activation(x)


def redirect(module: nn.Module, activations: dict[str, nn.Module], *, stores: bool) -> None:
    """Redirect a module's own calls of activation functions, not those of its children.

    Args:
        module: its class becomes a subclass.
        activations: by the kinds of calls; if empty, all calls run unchanged, whatever outer
            modules redirect.
        stores: whether the input of in-place calls is read again.
    """
    made: Any = module
    if not is_redirecting(made):
        made.activation_of_calls = nn.ModuleDict()
        made.stores_calls = False
        made.__class__ = _redirecting(class_before(module))  # type: ignore[arg-type]
    made.activation_of_calls.update(activations)
    made.stores_calls = made.stores_calls or stores


def is_redirecting(module: nn.Module) -> bool:
    """Tell whether calls of a module go to ``activation_of_calls``."""
    return hasattr(type(module), "class_before")


def class_before(module: nn.Module) -> type[nn.Module]:
    """Return the original class of a redirected module."""
    kind: type[nn.Module] = getattr(type(module), "class_before", type(module))
    return kind


@cache
def _redirecting(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass whose own calls of activation functions go to ``activation_of_calls``."""

    @wraps(kind.forward)  # tracers inspect the arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Redirect(self.activation_of_calls, stores=self.stores_calls):
            return kind.forward(self, *args, **kwargs)

    def reduced(self: Any) -> tuple[Any, ...]:
        return _new, (kind,), vars(self)  # pickle finds the original class by its name

    def prepared(_: Any) -> nn.Module:
        raise NetworkError(
            f"torch.jit.script reads the source of {kind.__name__}, where calls of activation "
            "functions are replaced at run time: use torch.jit.trace or torch.export"
        )

    content = {
        "forward": forward,
        "class_before": kind,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce__": reduced,
        "__prepare_scriptable__": prepared,
    }
    return type(kind.__name__, (kind,), content)


def _new(kind: type[nn.Module]) -> nn.Module:
    redirecting = _redirecting(kind)  # type: ignore[arg-type]
    return redirecting.__new__(redirecting)


class StandIn(nn.Module):
    """Stands in for an in-place activation layer and returns its input.

    Attributes:
        name: of the layer in the network.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()  # later layers may change it in place


class CallWatcher(TorchFunctionMode):
    """Records calls of activation functions with the names of the calling modules.

    Args:
        replaced: whether a call of a function by a named module will be replaced.

    Attributes:
        calls: names of modules and of their calls.
        reads: tensors read after an in-place change.
    """

    def __init__(self, replaced: Callable[[str, str], bool]) -> None:
        super().__init__()
        self.replaced = replaced
        self.stack: list[str] = [""]
        self.calls: list[tuple[str, str]] = []
        self.reads = Reads()

    def leave(self, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        """Return to the outer module, as a forward hook."""
        self.stack.pop()
        if isinstance(module, StandIn):
            self.reads.changed(module.name, *args, *kwargs.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # reading a shape does not read values
            self.reads.look(args, kwargs)
        if func in FUNCTIONS or func in GATES:
            call = (self.stack[-1], FUNCTIONS.get(func) or GATES[func])
            if call not in self.calls:
                self.calls.append(call)
            if func in FUNCTIONS and is_in_place(call[1], kwargs) and self.replaced(*call):
                x = args[0] if args else kwargs["input"]
                self.reads.changed(call[0], x)
                return x.clone()  # another tensor, to distinguish the two
        return func(*args, **kwargs)


@contextmanager
def watched(network: nn.Module, replaced: Callable[[str, str], bool]) -> Iterator[CallWatcher]:
    """Watch calls of activation functions in forward passes of a private copy of a network."""
    watch = CallWatcher(replaced)
    for name, module in network.named_modules():
        module.__class__ = class_before(module)
        module.register_forward_pre_hook(lambda *_, name=name: watch.stack.append(name))
        module.register_forward_hook(watch.leave, with_kwargs=True)
    with watch:
        yield watch

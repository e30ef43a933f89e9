"""Every activation layer of a network that knows nothing of the search, replaced.

Layers are modules of the classes of ``torch.nn.modules.activation`` and ``timm.layers``, and what
forward functions call by themselves (``functional.relu(x)``), which a trial forward pass finds by
seeing every call of torch. Gates are no activation layers and stay: sigmoids and hard sigmoids,
softmax, and attention. Arithmetic that happens to be one, such as ``x.clamp(min=0)``, is not found.

What works in place (``functional.relu(x, inplace=True)``, ``x.relu_()``, ``nn.ReLU(inplace=True)``)
is replaced by a function that does not, unless the network reads the changed tensor again, as where
it ignores what the call returns: there the function's values are written over its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation as activation_modules
from torch.overrides import TorchFunctionMode

from bo_act.errors import NetworkError
from bo_act.networks.in_place import Reads, Storing, is_in_place, store

__all__ = ["replace_activations"]

ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations")
_BETWEEN_0_AND_1 = "a gate: it multiplies something by numbers between 0 and 1"
_SUMS_TO_1 = "weights that sum to 1, or their logarithms"
LEFT = {
    "Sigmoid": _BETWEEN_0_AND_1,
    "Hardsigmoid": _BETWEEN_0_AND_1,
    "HardSigmoid": _BETWEEN_0_AND_1,
    "HardSigmoidMe": _BETWEEN_0_AND_1,
    "Softmax": _SUMS_TO_1,
    "Softmax2d": _SUMS_TO_1,
    "LogSoftmax": _SUMS_TO_1,
    "Softmin": _SUMS_TO_1,
    "MultiheadAttention": "attention, which takes several inputs",
}
"""Classes of activation modules that stay as they are, and why; so do the calls of their names."""
HALVING = ("glu", "glu_")
INSIDE_NORMS = "timm.layers.norm_act"


def replace_activations(
    network: nn.Module,
    activation: Callable[[], nn.Module],
    *,
    name: str,
    image: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Put a fresh module in the place of every activation layer.

    A module that stands in several places gets one for each; one that is called several times in
    its place stays one module, and the calls of one forward function share one. Normalization
    layers of timm that hold an activation inside become a sequence of the two.

    Args:
        network: changed in place.
        activation: returns a fresh module.
        name: of the network, for messages.
        image: shape (c, h, w) of the images of the trial pass.
        num_classes: number of values that it has to return for each image.

    Raises:
        NetworkError: a call or a module cannot be replaced, or the network does not return
            logits (b, num_classes) in training.
    """
    if _is_activation(network):
        raise NetworkError(f"{name}: the network is an activation layer itself")
    _replace(network, _stand_in, name)
    # Training is what is tried: some networks return more than logits then, or call more.
    trial = copy.deepcopy(network).train()
    with torch.no_grad(), _calls(trial) as watch:
        outputs = trial(torch.zeros(2, *image, device="cpu", dtype=torch.float32))
    watch.reads.look(outputs)
    for place, call in watch.found:
        if call.endswith(HALVING):
            raise NetworkError(
                f"{name}: {call} in {_shown(network, place)} cannot be replaced: it halves its "
                "channels; take another network, or write it as a model file"
            )
    if not isinstance(outputs, Tensor) or outputs.shape != (2, num_classes):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise NetworkError(
            f"{name}: expected logits (2, {num_classes}) for two images in training, got {came}"
        )
    places = sorted({place for place, _ in watch.found})
    again = watch.reads.again

    def fresh(_: str, stand_in: nn.Module) -> nn.Module:
        module = Apart(activation()) if places else activation()
        return Storing(module) if getattr(stand_in, "place", None) in again else module

    _replace(network, fresh, name)
    for place in places:
        module: Any = network.get_submodule(place)
        module.activation_of_calls = Apart(activation())
        module.stores_calls = place in again
        module.__class__ = _redirecting(type(module))  # type: ignore[arg-type]


class Apart(nn.Module):
    """An activation module whose own calls of torch are not taken for the network's."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            y: Tensor = self.activation(x)
        return y


class _Redirect(TorchFunctionMode):
    """Has an activation module do what activation functions are called for."""

    def __init__(self, activation: nn.Module, *, stores: bool) -> None:
        super().__init__()
        self.activation, self.stores = activation, stores

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if self.stores and is_in_place(_FUNCTIONS[func], kwargs):
            return store(self.activation, x)
        return self.activation(x)


@cache
def _redirecting(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass whose own calls of activation functions go to ``activation_of_calls``."""

    @wraps(kind.forward)  # for those who trace a network by its arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Redirect(self.activation_of_calls, stores=self.stores_calls):
            return kind.forward(self, *args, **kwargs)

    def reduced(self: Any) -> tuple[Any, ...]:
        return _new, (kind,), vars(self)  # by its own name pickle would find the class it is of

    def prepared(_: Any) -> nn.Module:
        raise NetworkError(
            f"torch.jit.script reads the source of {kind.__name__}, whose calls of activation "
            "functions were replaced while it runs: use torch.jit.trace or torch.export"
        )

    content = {
        "forward": forward,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__reduce__": reduced,
        "__prepare_scriptable__": prepared,
    }
    return type(kind.__name__, (kind,), content)


def _new(kind: type[nn.Module]) -> nn.Module:
    redirecting = _redirecting(kind)  # type: ignore[arg-type]
    return redirecting.__new__(redirecting)


class _StandIn(nn.Module):
    """Passes its input on, where an activation layer was and will be.

    Attributes:
        place: its name in the network.
        in_place: whether that layer worked in place.
    """

    def __init__(self, place: str, *, in_place: bool) -> None:
        super().__init__()
        self.place, self.in_place = place, in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()  # what follows may change it in place


def _stand_in(place: str, layer: nn.Module) -> nn.Module:
    return _StandIn(place, in_place=bool(getattr(layer, "inplace", False)))


def _is_activation(module: nn.Module) -> bool:
    kinds = [
        kind for kind in type(module).__mro__ if kind.__module__.startswith(ACTIVATION_MODULES)
    ]
    return type(module) is _StandIn or bool(
        kinds and not LEFT.keys() & {one.__name__ for one in kinds}
    )


def _replace(network: nn.Module, fresh: Callable[[str, nn.Module], nn.Module], name: str) -> None:
    """Replace activation layers; the first call also takes them out of normalization layers.

    ``fresh`` gets the name of the place and the layer that was there.
    """
    for prefix, parent in list(network.named_modules()):
        for key, child in _places(parent):
            place = f"{prefix}.{key}" if prefix else key
            if isinstance(child, nn.GLU):
                raise NetworkError(
                    f"{name}: {type(child).__name__} at {place} cannot be replaced: it halves its "
                    "channels; take another network, or write it as a model file"
                )
            if _is_activation(child):
                setattr(parent, key, fresh(place, child))
            elif type(child).__module__ == INSIDE_NORMS and _is_activation(child.act):
                layer, child.act = child.act, nn.Identity()
                setattr(parent, key, nn.Sequential(child, fresh(place, layer)))


def _shown(network: nn.Module, place: str) -> str:
    return f"{place or '(root)'} ({type(network.get_submodule(place)).__name__})"


def _places(parent: nn.Module) -> list[tuple[str, Any]]:
    """Return children by name; one that stands under two names twice."""
    return [(key, child) for key, child in parent._modules.items() if child is not None]


class _CallWatcher(TorchFunctionMode):
    """Keeps calls of activation functions with the name of the module that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.reads = Reads()

    def leave(self, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        """Go back to the module outside, as a forward hook."""
        self.stack.pop()
        if isinstance(module, _StandIn) and module.in_place:
            self.reads.changed(module.place, *args, *kwargs.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # to ask for its shape is not to read it
            self.reads.look(args, kwargs)
        if func in _FUNCTIONS:
            call = (self.stack[-1], _FUNCTIONS[func])
            if call not in self.found:
                self.found.append(call)
            if is_in_place(call[1], kwargs):
                x = args[0] if args else kwargs["input"]
                self.reads.changed(call[0], x)
                return x.clone()  # another tensor, so that the two are told apart from here on
        return func(*args, **kwargs)


def _functions() -> dict[Any, str]:
    """Return the calls that are replaced: whatever torch has under the name of such a module."""
    modules = {_plain(name) for name in activation_modules.__all__ if name not in LEFT}
    named: dict[Any, str] = {}
    for home, shown in ((functional, "functional"), (torch, "torch"), (Tensor, "Tensor")):
        for name in dir(home):
            if name[0] != "_" and _plain(name) in modules and callable(getattr(home, name)):
                named.setdefault(getattr(home, name), f"{shown}.{name}")
    return named


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


_FUNCTIONS = _functions()


@contextmanager
def _calls(network: nn.Module) -> Iterator[_CallWatcher]:
    """Watch calls of activation functions during forward passes of the network."""
    watch = _CallWatcher()
    for place, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, place=place: watch.stack.append(place))
        module.register_forward_hook(watch.leave, with_kwargs=True)
    with watch:
        yield watch

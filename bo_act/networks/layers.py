"""Recognizing activation layers, and the gates that stay.

A module is an activation layer if its class is among the activations of torch, timm or
transformers. A custom module without parameters, buffers and children is one if trials show that
it is elementwise, deterministic, finite, smooth enough not to be a rounding, the same in training
and evaluation, and not linear: this excludes dropout, normalization, reshaping and scaling.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.dependencies.torch_internals import children_of, without_torch_function
from bo_act.user_code.files import is_required

ACTIVATION_MODULES = (
    "torch.nn.modules.activation", "timm.layers.activations", "transformers.activations",
)  # fmt: skip
BETWEEN_0_AND_1 = "a gate: it multiplies something by numbers between 0 and 1"
_SUMS_TO_1 = "weights that sum to 1, or their logarithms"
LEFT = {
    "Sigmoid": BETWEEN_0_AND_1,
    "Hardsigmoid": BETWEEN_0_AND_1,
    "HardSigmoid": BETWEEN_0_AND_1,
    "HardSigmoidMe": BETWEEN_0_AND_1,
    "LaplaceActivation": BETWEEN_0_AND_1,
    "SqrtSoftplusActivation": "scores of a router",
    "LinearActivation": "the identity",
    "Softmax": _SUMS_TO_1,
    "Softmax2d": _SUMS_TO_1,
    "LogSoftmax": _SUMS_TO_1,
    "Softmin": _SUMS_TO_1,
    "MultiheadAttention": "attention, which takes several inputs",
}
"""Classes of activation modules that stay as they are, and why; so do the calls of their names."""
RECURRENT = "a recurrent layer, which computes its gates and tanh in one kernel"
SCRIPTED = "compiled by torch.jit, so there is nothing to replace"
INSIDE_NORMS = "timm.layers.norm_act"
TIMM_GLU = ("timm.layers.mlp.GluMlp", "act")
"""Where a sigmoid is what it is in ``nn.GLU``."""
_TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_POINTS = 96


class Apart(nn.Module):
    """An activation module; its own torch calls do not count as the network's."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate."""
        with without_torch_function():
            y: Tensor = self.activation(x)
        return y


class Gated(nn.Module):
    """The product of one half of the channels and a function of the other, as ``nn.GLU`` is.

    Args:
        activation: of the second half, where ``nn.GLU`` has a sigmoid.
        dim: the dimension that is halved.
    """

    def __init__(self, activation: nn.Module, dim: int = -1) -> None:
        super().__init__()
        self.activation, self.dim = activation, dim

    def forward(self, x: Tensor) -> Tensor:
        """Return half as many channels."""
        value, gate = x.chunk(2, self.dim)
        product: Tensor = value * self.activation(gate)
        return product


@dataclass(frozen=True)
class Layer:
    """The place of an activation layer.

    Attributes:
        parent: name of the parent module.
        key: its name there.
        kinds: of the original layer: its class for display, then the full names of the class and
            its bases.
        reason: why it stays; empty for an activation layer.
        inside_norm: it is the ``act`` of the normalization layer at this place.
    """

    parent: str
    key: str
    kinds: tuple[str, ...]
    reason: str = ""
    in_place: bool = False
    inside_norm: bool = False

    @property
    def name(self) -> str:
        """Name in the network."""
        name = f"{self.parent}.{self.key}" if self.parent else self.key
        return f"{name}.act" if self.inside_norm else name


def layers_of(network: nn.Module) -> Iterator[Layer]:
    """Return activation layers, and similar modules that stay, in the network's order."""
    within: list[str] = []
    for prefix, parent in network.named_modules():
        if any(prefix == outer or prefix.startswith(f"{outer}.") for outer in within):
            continue
        if isinstance(parent, torch.jit.ScriptModule):
            within.append(prefix)
            continue
        for key, child in children_of(parent).items():
            if child is None:
                continue
            layer = _layer(prefix, parent, key, child)
            if layer is not None and layer.name not in within:
                yield layer
                within.append(layer.name)
        if isinstance(parent, _TRANSFORMERS) and not isinstance(parent.activation, nn.Module):
            function = parent.activation
            yield Layer(prefix, "activation", (getattr(function, "__name__", str(function)),))


def _layer(prefix: str, parent: nn.Module, key: str, child: nn.Module) -> Layer | None:
    kinds = kinds_of(child)
    in_place = bool(getattr(child, "inplace", False))
    if isinstance(child, torch.jit.ScriptModule):
        return Layer(prefix, key, kinds, SCRIPTED)
    if isinstance(child, nn.RNNBase | nn.RNNCellBase):
        return Layer(prefix, key, kinds, RECURRENT)
    if isinstance(child, Activation) or hasattr(child, "stands_for"):
        return Layer(prefix, key, kinds)
    if isinstance(child, nn.Sigmoid) and (full_name(type(parent)), key) == TIMM_GLU:
        return Layer(prefix, key, kinds)
    reason = _of_a_library(child)
    if reason is None:
        reason = _by_trying(child)
    if reason is not None:
        return Layer(prefix, key, kinds, reason, in_place)
    if type(child).__module__ == INSIDE_NORMS:
        act = child.act
        if isinstance(act, nn.Module) and _of_a_library(act) == "":
            in_place = bool(getattr(act, "inplace", False))
            return Layer(prefix, key, kinds_of(act), "", in_place, inside_norm=True)
    return None


def kinds_of(module: nn.Module) -> tuple[str, ...]:
    """Return the class of an activation layer for display, and the full names of its bases.

    A replacement has the kinds of the original layer.
    """
    if hasattr(module, "stands_for"):
        kinds: tuple[str, ...] = module.stands_for  # type: ignore[assignment]
        return kinds
    bases = type(module).__mro__
    full = [full_name(base) for base in bases[: bases.index(nn.Module)]]
    return (type(module).__name__, *full)


def full_name(kind: type) -> str:
    """Return the name of a class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_activation(module: nn.Module) -> bool:
    """Tell whether a single module is an activation layer."""
    if isinstance(module, Activation):
        return True
    reason = _of_a_library(module)
    return (_by_trying(module) if reason is None else reason) == ""


def _of_a_library(module: nn.Module) -> str | None:
    """Return why a module stays, "" for an activation layer, None if unknown."""
    known = [cls for cls in type(module).__mro__ if cls.__module__.startswith(ACTIVATION_MODULES)]
    if not known:
        return None
    return next((LEFT[cls.__name__] for cls in known if cls.__name__ in LEFT), "")


def _by_trying(module: nn.Module) -> str | None:
    """The same for a module of a custom class."""
    if type(module).__module__.startswith(("torch.", "bo_act.")) or next(module.children(), None):
        return None
    if any(True for _ in (*module.parameters(), *module.buffers())) or not _takes_one(module):
        return None
    try:
        with torch.random.fork_rng(()), torch.no_grad():
            values = [_elementwise(copy.deepcopy(module).train(mode)) for mode in (True, False)]
    except Exception:  # it does not take any shape, so it is not elementwise
        return None
    if any(y is None for y in values) or not torch.equal(*values):  # type: ignore[arg-type]
        return None
    y = values[0]
    return BETWEEN_0_AND_1 if y.min() >= 0 and y.max() <= 1 else ""  # type: ignore[union-attr]


def _takes_one(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(map(is_required, parameters)) == 1


def _elementwise(function: nn.Module) -> Tensor | None:
    """Return the values of a nonlinear elementwise function, else None."""
    # Asymmetric numbers, far enough out for kinks outside the usual range.
    x = torch.linspace(-7.3, 7.9, _POINTS, device="cpu", dtype=torch.float32)
    y = function(x.reshape(12, 8).clone())
    if not isinstance(y, Tensor) or y.shape != (12, 8) or y.dtype != x.dtype:
        return None
    y = y.flatten()
    order = torch.randperm(_POINTS, device="cpu", dtype=torch.int64)
    for shape in ((4, 6, 2, 2), (2, 6, 8)):
        again = function(x[order].reshape(shape).clone())
        if not isinstance(again, Tensor) or again.shape != shape:
            return None
        if not torch.allclose(again.flatten(), y[order], atol=1e-6, equal_nan=False):
            return None
    bends = (y[2:] - 2 * y[1:-1] + y[:-2]).abs().max() > 1e-3
    steps = len(torch.unique(y)) < _POINTS / 4
    return y if bends and not steps else None

"""How to call a network, and which of its outputs have a loss.

Symbols, with shapes:

    B      images in the batch, or sequences: the first dimension
    C, V   outputs; for each token, the tokens of a vocabulary
    T      tokens of one image
    N      examples: images or tokens, each with its own loss
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.errors import FeatureError

__all__ = [
    "IGNORED",
    "Examples",
    "Inputs",
    "Targets",
    "as_examples",
    "as_tensor",
    "batch_size",
    "call",
    "logits_of",
    "mapped",
    "parts",
    "taken",
    "tensors",
]

Inputs = Tensor | NDArray[Any] | Mapping[str, Any] | Sequence[Any]
"""One batch, as the network takes it: a tensor, ``network(**inputs)`` or ``network(*inputs)``."""

Targets = Tensor | NDArray[Any]

IGNORED = -100
"""The target of tokens that have no loss, as in ``nn.CrossEntropyLoss``."""


def mapped(inputs: Inputs, change: Callable[[Tensor | NDArray[Any]], Tensor]) -> Inputs:
    """Return inputs with changed tensors and arrays; other arguments stay."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor | np.ndarray) else value

    if isinstance(inputs, Mapping):
        return {name: changed(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(changed(value) for value in inputs)
    if not isinstance(inputs, Tensor | np.ndarray):
        raise FeatureError(
            "expected a tensor, an array, or a dict or tuple of them as inputs, got "
            f"{type(inputs).__name__}"
        )
    return change(inputs)


def as_tensor(values: Targets) -> Tensor:
    """Return an array as a tensor on the CPU; a tensor stays on its device.

    Raises:
        FeatureError: torch has no such dtype.
    """
    if isinstance(values, Tensor):
        return values
    try:
        return torch.as_tensor(values, device="cpu")
    except TypeError as error:
        raise FeatureError(f"expected an array of numbers, got {error}") from error


def taken(inputs: Inputs, network: nn.Module) -> Inputs:
    """Return the inputs with arrays as tensors of the network's dtype, on its device.

    Only floating-point arrays get its dtype. Tensors stay unchanged.
    """
    weight = next((p for p in network.parameters() if p.is_floating_point()), None)

    def as_input(values: Tensor | NDArray[Any]) -> Tensor:
        tensor = as_tensor(values)
        if weight is None or isinstance(values, Tensor):
            return tensor
        return tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else None)

    return mapped(inputs, as_input)


def parts(inputs: Inputs) -> dict[str, Any]:
    """Return the arguments of a network by name or number; the first by number has none."""
    if isinstance(inputs, Tensor | np.ndarray):
        return {"": inputs}
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {str(name or ""): value for name, value in named}


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors among the inputs."""
    return [value for value in parts(inputs).values() if isinstance(value, Tensor)]


def batch_size(inputs: Inputs) -> int:
    """Return B, the first dimension of the first tensor.

    Raises:
        FeatureError: there is no tensor, or it is empty.
    """
    first = next(iter(tensors(inputs)), None)
    if first is None:
        raise FeatureError("expected a batch of inputs, got no tensor")
    if first.dim() == 0 or first.shape[0] == 0:
        raise FeatureError(f"expected a batch of inputs, got shape {tuple(first.shape)}")
    return first.shape[0]


def call(network: nn.Module, inputs: Inputs) -> object:
    """Call a network on copies of the inputs, which it may change in place."""
    copied = mapped(inputs, lambda values: as_tensor(values).detach().clone())
    if isinstance(copied, dict):
        return network(**copied)
    return network(*copied) if isinstance(copied, tuple) else network(copied)


@dataclass(frozen=True)
class Examples:
    """The examples of a loss, one per row, those of an image in sequence.

    Attributes:
        logits: (N, C), in the graph.
        images: (N,) the image of each example, on the CPU.
        targets: (N,) or (N, C), on the CPU; or None.
    """

    logits: Tensor
    images: Tensor
    targets: Tensor | None

    def masks(self) -> list[Tensor | None]:
        """Return masks (N, 1) with at most one example per image; None if one mask has all."""
        counts = self.images.bincount()
        starts = (counts.cumsum(0) - counts)[self.images]
        position = torch.arange(len(self.images), device="cpu") - starts
        most = int(counts.max())
        return [None] if most == 1 else [(position == number)[:, None] for number in range(most)]


def as_examples(outputs: object, targets: Targets | None, batch: int) -> Examples:
    """Return the examples of a network's outputs.

    Args:
        outputs: (B, C), (B, T, V) with tokens as examples, or (B,); or an object with such
            ``logits``.
        targets: of each example: (B,) or (B, T), or shaped like the outputs; tokens with the
            target ``IGNORED`` are not examples.
        batch: B.

    Raises:
        FeatureError: the outputs have another form, are not finite or not in the graph, or the
            targets of tokens do not fit.
    """
    y = logits_of(outputs)
    if y.dim() not in (1, 2, 3) or y.shape[0] != batch:
        raise FeatureError(
            f"expected logits of shape ({batch}, classes), ({batch}, tokens, classes) or "
            f"({batch},), got {tuple(y.shape)}"
        )
    if not bool(y.detach().isfinite().all()):
        raise FeatureError("not finite in the forward pass at the logits")
    if not y.requires_grad:
        raise FeatureError("the logits have no gradient (torch.no_grad in the network?)")
    t = None if targets is None else as_tensor(targets).detach().cpu()
    images = torch.arange(batch, device="cpu")
    if y.dim() == 3:
        return _tokens(y, t, images)
    logits = y.unsqueeze(1) if y.dim() == 1 else y
    if t is not None and logits.shape[1] == 1 and t.shape == (batch,):
        t = t.unsqueeze(1)
    return Examples(logits, images, t)


def _tokens(y: Tensor, t: Tensor | None, images: Tensor) -> Examples:
    """Return the examples of outputs (B, T, V)."""
    logits, images = y.flatten(0, 1), images.repeat_interleave(y.shape[1])
    if t is None:
        return Examples(logits, images, None)
    if t.shape == y.shape:
        return Examples(logits, images, t.flatten(0, 1))
    if t.shape != y.shape[:2]:
        raise FeatureError(
            f"expected a target for each token, shape {tuple(y.shape[:2])}, got {tuple(t.shape)}"
        )
    t = t.flatten()
    counted = t != IGNORED
    if not bool(counted.any()):
        raise FeatureError(
            f"expected at least one token with a loss, got only targets of {IGNORED}"
        )
    if not bool(counted.all()):
        logits, images, t = logits[counted.to(logits.device)], images[counted], t[counted]
    return Examples(logits, images, t.unsqueeze(1) if y.shape[2] == 1 else t)


def logits_of(outputs: object) -> Tensor:
    """Return the outputs of a network, or their ``logits``.

    Raises:
        FeatureError: there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        logits, names = outputs.get("logits"), [str(name) for name in outputs]
    else:
        logits, names = getattr(outputs, "logits", None), list(getattr(outputs, "__dict__", ()))
    if isinstance(logits, Tensor):
        return logits
    inside = f" of {', '.join(names)}" if names else ""
    raise FeatureError(
        f"expected logits as a tensor, or in an output with `logits`, got {type(outputs).__name__}"
        f"{inside}; wrap the network in a module that returns its outputs as one tensor"
    )

"""Lazy layers, whose weights get their shapes from the first samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bo_act.errors import NetworkError
from bo_act.fisher.calls import Inputs, as_tensor, call, mapped, parts
from bo_act.user_code.failures import USERS, is_machines, one_line


def materialize(
    network: nn.Module, path: Path | str | None = None, *, inputs: Inputs, seed: int
) -> None:
    """Give lazy layers their weights in place; torch's global random state is left as it was.

    Args:
        network: on the CPU; without lazy layers it stays unchanged.
        path: of its file, for messages; None if it has none.
        inputs: some samples, on the CPU; only shapes and dtypes matter.
        seed: of these weights.

    Raises:
        NetworkError: the network has no weights, fails on the samples, or does not use a lazy
            layer.
    """
    named = [*network.named_parameters(), *network.named_buffers()]
    where = "" if path is None else f"{path}: "
    if empty := [name for name, weight in named if weight.is_meta and not is_lazy(weight)]:
        raise NetworkError(
            f"{where}expected a network with weights, got {empty[0]!r} on the meta device; build "
            "the network on the CPU"
        )
    if not any(is_lazy(weight) for _, weight in named):
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        try:
            call(network.eval(), mapped(inputs, lambda values: _of_dtype(values, network)))
        except USERS as error:
            if is_machines(error):
                raise
            raise NetworkError(
                f"{where}the network fails on inputs of shape {_shown(inputs)}, which its "
                f"lazy layers need: {one_line(error)}"
            ) from error
    for module, training in modes.items():
        module.training = training
    left = [name for name, weight in network.named_parameters() if is_lazy(weight)]
    if left:
        raise NetworkError(
            f"{where}forward does not use the lazy layer of {left[0]!r}, so that layer has no "
            "weights; remove it"
        )


def _of_dtype(values: Any, network: nn.Module) -> Tensor:
    """Return samples in the dtype of the network, if they are floating-point numbers."""
    tensor = as_tensor(values)
    dtypes = [weight.dtype for weight in network.parameters() if weight.is_floating_point()]
    return tensor.to(dtypes[0]) if dtypes and tensor.is_floating_point() else tensor


def _shown(inputs: Inputs) -> str:
    """Return the shapes of inputs as text: ``(2, 1, 8, 8)``, ``{'ids': (2, 16)}``."""
    shapes = {name: tuple(getattr(part, "shape", ())) for name, part in parts(inputs).items()}
    return str(shapes[""] if [*shapes] == [""] else shapes)

"""Lazy layers, whose weights get their shapes from the first samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bo_act.data.samples import Inputs, call, mapped, shown_shape
from bo_act.errors import NetworkError
from bo_act.failures import USERS, is_machines, one_line


def materialize(network: nn.Module, path: Path, *, inputs: Inputs, seed: int) -> None:
    """Give lazy layers their weights in place; torch's global random state is left as it was.

    Args:
        network: on the CPU; without lazy layers it stays unchanged.
        path: of its file, for messages.
        inputs: some samples, on the CPU; only shapes and dtypes matter.
        seed: of these weights.

    Raises:
        NetworkError: the network fails on the samples, or does not use a lazy layer.
    """
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        try:
            call(network.eval(), mapped(inputs, lambda one: one.clone()))
        except USERS as error:
            if is_machines(error):
                raise
            raise NetworkError(
                f"{path}: the network fails on inputs of shape {shown_shape(inputs)}, which its "
                f"lazy layers need: {one_line(error)}"
            ) from error
    for module, training in modes.items():
        module.training = training
    left = [name for name, weight in network.named_parameters() if is_lazy(weight)]
    if left:
        raise NetworkError(
            f"{path}: forward does not use the lazy layer of {left[0]!r}, so that layer has no "
            "weights; remove it"
        )

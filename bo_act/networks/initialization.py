"""Initial weights that suit the activation function.

The usual initializations are made for ReLU. Behind a function with other moments the signal grows
or fades from layer to layer, and a good function looks bad because it began badly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bo_act.data.samples import Inputs, call, mapped
from bo_act.torch_state import plain_torch

Initialization = Literal["default", "kaiming", "unit_variance"]

_SAMPLES = 256
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@plain_torch()
def initialize(network: nn.Module, how: Initialization, *, inputs: Inputs, seed: int) -> None:
    """Set the weights of a network in place; torch's global random state is left as it was.

    ``kaiming`` draws the weights of linear layers and convolutions as in He et al. 2015
    (https://arxiv.org/abs/1502.01852), for ReLU, with biases of zero. ``unit_variance`` keeps the
    weights as drawn, sets these biases to zero, and scales each layer so that its outputs have a
    mean square of 1 on standard normal inputs (whole numbers, as tokens, are taken as they are). So
    each layer is scaled by the moments of the activation before it, which is the aim of AutoInit
    (Bingham and Miikkulainen 2023); they are measured rather than derived, so that any network will
    do, as in LSUV (Mishkin and Matas 2016,
    https://arxiv.org/abs/1511.06422). A layer that puts out zeros or no finite numbers stays as it
    is, and so do layers that the network computes without calling them (the projections into
    ``nn.MultiheadAttention``).

    Args:
        network: on the CPU or a GPU; buffers and modes are left as they were.
        how: ``default`` leaves everything as it was built.
        inputs: some samples, of which shapes and dtypes count, and the values of whole numbers.
        seed: of the random numbers.
    """
    if how == "default":
        return
    layers = [module for module in network.modules() if isinstance(module, _WEIGHTED)]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for layer in layers:
            if layer.bias is not None:
                layer.bias.zero_()
            if how == "kaiming":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if how == "unit_variance":
            some = next(network.parameters(), None)
            generator = torch.Generator().manual_seed(seed)
            _scale(network, layers, mapped(inputs, lambda one: _drawn(one, some, generator)))


def _drawn(values: Tensor, like: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return samples of this form: of standard normal numbers, or the given whole ones again."""
    if values.is_floating_point():
        shape = (_SAMPLES, *values.shape[1:])
        drawn = torch.randn(shape, device="cpu", dtype=torch.float32, generator=generator)
    else:
        drawn = values[torch.arange(_SAMPLES, device="cpu") % len(values)]
    if like is None:
        return drawn
    return drawn.to(like.device, like.dtype if drawn.is_floating_point() else None)


def _scale(network: nn.Module, layers: list[Any], inputs: Inputs) -> None:
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    hooks = [layer.register_forward_hook(_scale_once(set())) for layer in layers]
    try:
        # Normalization as in training, where it takes the moments of the batch; no dropout.
        network.train()
        for module in modes:
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        call(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training


def _scale_once(seen: set[int]) -> Callable[[Any, Any, Tensor], Tensor | None]:
    def hook(layer: Any, _: Any, output: Tensor) -> Tensor | None:
        size = output.double().square().mean().sqrt()
        if id(layer) in seen or not torch.isfinite(size) or size < 1e-6:
            return None
        seen.add(id(layer))
        layer.weight.div_(size.to(layer.weight.dtype))
        return output / size.to(output.dtype)

    return hook

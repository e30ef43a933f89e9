"""Initial weights that suit the activation function.

The usual initializations are made for ReLU. With other moments the signal grows or fades from
layer to layer, and a good function looks bad because of a bad start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bo_act.data.samples import Inputs, call, mapped
from bo_act.dependencies.torch_internals import Dropout
from bo_act.dependencies.torch_state import plain_torch

Initialization = Literal["default", "kaiming", "unit_variance"]

_SAMPLES = 256
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@plain_torch()
def initialize(network: nn.Module, how: Initialization, *, inputs: Inputs, seed: int) -> None:
    """Set the weights of a network in place; torch's global random state is left as it was.

    ``kaiming`` draws the weights of linear layers and convolutions as in He et al. 2015
    (https://arxiv.org/abs/1502.01852), for ReLU, with biases of zero. ``unit_variance`` keeps the
    weights as drawn, sets these biases to zero, and scales each layer so that its outputs have a
    mean square of 1 on standard normal inputs (integer inputs, such as tokens, stay unchanged). So
    each layer is scaled by the moments of the activation before it, as in AutoInit (Bingham and
    Miikkulainen 2023), but measured, for any network, as in LSUV (Mishkin and Matas 2016,
    https://arxiv.org/abs/1511.06422). Layers with zero or non-finite outputs stay unchanged, and
    so do layers that run without a call (the projections into ``nn.MultiheadAttention``).

    Args:
        network: on the CPU or a GPU; buffers and modes stay unchanged.
        how: ``default`` changes nothing.
        inputs: some samples: only shapes and dtypes matter, and the values of integers.
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
            weight = next(network.parameters(), None)
            generator = torch.Generator().manual_seed(seed)
            _scale(
                network, layers, mapped(inputs, lambda tensor: _drawn(tensor, weight, generator))
            )


def _drawn(values: Tensor, like: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return standard normal samples of this form; integers stay."""
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
        # Normalize by the batch, as in training, but without dropout.
        network.train()
        for module in modes:
            if isinstance(module, Dropout):
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

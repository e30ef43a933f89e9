"""Initial weights that suit the activation function.

The usual initializations are made for ReLU. Behind a function with other moments the signal grows
or fades from layer to layer, and a good function looks bad because it began badly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bo_act.torch_internals import Dropout
from bo_act.torch_state import plain_torch

Initialization = Literal["default", "kaiming", "unit_variance"]

_IMAGES = 256
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@plain_torch()
def initialize(
    network: nn.Module, how: Initialization, *, shape: tuple[int, int, int], seed: int
) -> None:
    """Set the weights of a network in place; torch's global random state is left as it was.

    ``kaiming`` draws the weights of linear layers and convolutions as in He et al. 2015
    (https://arxiv.org/abs/1502.01852), for ReLU, with biases of zero. ``unit_variance`` keeps the
    weights as drawn, sets these biases to zero, and scales each layer so that its outputs have a
    mean square of 1 on standard normal images. So each layer is scaled by the moments of the
    activation before it, which is the aim of AutoInit (Bingham and Miikkulainen 2023); they are
    measured rather than derived, so that any network will do, as in LSUV (Mishkin and Matas 2016,
    https://arxiv.org/abs/1511.06422). A layer that puts out zeros or no finite numbers stays as it
    is, and so do layers that the network computes without calling them (the projections into
    ``nn.MultiheadAttention``).

    Args:
        network: on the CPU or a GPU; buffers and modes are left as they were.
        how: ``default`` leaves everything as it was built.
        shape: of an image, (channels, height, width).
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
            images = torch.randn(
                (_IMAGES, *shape),
                device="cpu",
                dtype=torch.float32,
                generator=torch.Generator().manual_seed(seed),
            )
            some = next(network.parameters(), images)
            _scale(network, layers, images.to(some.device, some.dtype))


def _scale(network: nn.Module, layers: list[Any], images: Tensor) -> None:
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    hooks = [layer.register_forward_hook(_scale_once(set())) for layer in layers]
    try:
        # Normalization as in training, where it takes the moments of the batch; no dropout.
        network.train()
        for module in modes:
            if isinstance(module, Dropout):
                module.eval()
        network(images)
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

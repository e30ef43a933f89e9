"""The plain way of computing the Fisher spectra, and its comparison with ours.

Hooks, ``unfold``, one matrix product a factor, float64 ``eigvalsh``, all products of eigenvalues:
what one would write in an afternoon, without any of bo_act's code for the Fisher matrix. It is not
handicapped: no weight gradient is computed, and nothing is checked. The symbols are those of
``bo_act.fisher.kfac``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bo_act.fisher.spectra import FimSpectra

QUANTILES = 128

# Eigenvalues are compared down to this, times the size of the larger factor, times the largest
# one. eps · n is the rounding of a matrix of size n; that of float32 sums over thousands of
# positions comes on top: it gave the gradients of the logits, which add up to zero, a null
# eigenvalue of 22 · eps · n (All-CNN-C, n = 10).
RESOLUTION = 10 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class PlainLayer:
    """One layer's spectrum, computed the plain way.

    Attributes:
        logs: (weights,) logarithms of the eigenvalues, -inf for those that are numerically zero.
        quantiles: (Q,) of those that are not.
        traces: of the input factor and of the output-gradient factor.
        size: of the larger factor.
    """

    logs: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    traces: tuple[float, float]
    size: int


def plain_way(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, PlainLayer]:
    """Compute the spectra of all Linear and ungrouped Conv2d layers, each called once."""
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str, _: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs[name], outputs[name] = args[0].detach(), output

    network.train()  # batch normalization with the statistics of the batch
    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers.items()]
    loss = functional.cross_entropy(network(images), labels, reduction="sum")
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    return {
        name: plain_layer(layers[name], inputs[name], gradient)
        for name, gradient in zip(outputs, gradients, strict=True)
    }


def plain_layer(layer: nn.Module, x: Tensor, d: Tensor) -> PlainLayer:
    """Return the spectrum of A ⊗ G of a layer with inputs x and output gradients d."""
    batch = len(x)
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(
            x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        x, d = patches.mT, d.flatten(2).mT  # (B, T, inputs) and (B, T, outputs)
    rows, steps = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    factors = (rows.T @ rows / len(rows), steps.T @ steps / batch)
    spectra = []
    for factor in factors:
        values = torch.linalg.eigvalsh(factor.double()).cpu().numpy()
        # What rounding of the float32 sums cannot tell from zero.
        floor = np.finfo(np.float32).eps * len(values) * values[-1]
        spectra.append(np.where(values > floor, values, 0.0))
    with np.errstate(divide="ignore"):
        logs = np.log(np.outer(*spectra).ravel())
    logs.sort()
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return PlainLayer(
        logs=logs,
        quantiles=np.quantile(logs[logs > -np.inf], levels, method="inverted_cdf"),
        traces=(factors[0].trace().item(), factors[1].trace().item()),
        size=max(map(len, spectra)),
    )


def compare(ours: FimSpectra, plain: dict[str, PlainLayer]) -> tuple[float, float]:
    """Return the largest difference of quantiles, and the share of them that was compared.

    What the plain way has below ``RESOLUTION`` may consist of rounding alone. Above it, the j-th
    largest of one way is held against the j-th largest of the other. The difference is infinite
    where nothing can be compared.
    """
    worst, compared, of = 0.0, 0, 0
    for index, name in enumerate(ours.layers):
        layer = plain.get(name)
        if layer is None:
            continue
        descending = layer.logs[::-1]
        limit = descending[0] + np.log(RESOLUTION * layer.size)
        resolved = np.count_nonzero(descending > limit)
        count, odd = len(descending), 2 * np.arange(QUANTILES) + 1
        rank = count + (-odd * count // (2 * QUANTILES))  # from the largest, which has 0
        inside = rank < resolved
        difference = np.abs(ours.quantiles[index][inside] - descending[rank[inside]])
        worst = max(worst, np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
        compared, of = compared + len(difference), of + QUANTILES
    return (float(worst), compared / of) if compared else (np.inf, 0.0)

"""Fisher spectra in the Act-Bench format, to compare new functions with released ones.

The layout, for each layer of w weights and biases in the order of the network: the edges
``linspace(-100, 100, w // 100)`` of natural-log eigenvalues, the counts between them, summed up and
divided by the last sum; all layers in one vector (13,683 numbers for All-CNN-C with 10 classes).

The released numbers are those of Bingham and Miikkulainen (2023), arXiv 2301.05785: the empirical
Fisher matrix of the mean loss of a float32 network on one batch, with normalization layers at their
initial running statistics, linear and convolutional layers only. We imitate for layers on plain
vectors and for convolutions, with B, T, x, d, A and G as in ``bo_act.fisher.kfac``:

- The mean loss has 1/B of each image's gradient, and G is its square: G / B².
- A linear layer's sums over the images were divided by its f input features plus 1, not by B. Here
  A = 1/B · sum of x xᵀ where T = 1, so that theirs is A · B/(f + 1), and for G the same. All
  logarithms shift by 2 log(B/(f + 1)), with a bias or without. Convolutions have the same
  divisors, B·T and B, in both.
- A layer with a bias had float64 factors, of float32 inputs and gradients, since a column of
  float64 ones stood beside the inputs; one without a bias was float32 throughout. So null
  eigenvalues, including those of units that are always zero, were rounding errors of either sign,
  about 1e-16 or 1e-7 of the largest one. The logarithms of negative products and of 0 were left
  out, so that only positive rounding errors count. Here all factors are summed as elsewhere in
  bo-act, with float64 accuracy; those of a layer without a bias are then rounded to float32,
  solved and multiplied in it.

Not imitated, because these are not properties of the function:

- which null eigenvalues come out positive, and how large: this depends on the order of the sums,
the library and the machine;
- float32 sums of the products in layers without a bias, with errors as large as those of rounding
the sums;
- linear layers on token sequences were flattened to one long vector (here: each token a position,
  A the mean over them, times B/(f + 1) with the f features of one token);
- depthwise convolutions pooled their channels into one factor (here: a block a channel);
- strided convolutions with "same" padding were aligned differently;
- a layer without a gradient was left out, which shifted all later ones (here: zeros).

Compare only vectors of one source; across both, see "Comparison with released vectors" in
``docs/concepts/features.md``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bo_act.errors import FeatureError
from bo_act.fisher.calls import Inputs, Targets, batch_size, taken
from bo_act.fisher.kfac import LayerFactors, kronecker_factors
from bo_act.fisher.layer_spectrum import factor_values
from bo_act.fisher.options import FisherOptions

__all__ = ["act_bench_vector", "bins", "edges"]


def edges(weights: int) -> NDArray[np.float64]:
    """Return the edges of a layer's histogram; fewer than two give no bins.

    Args:
        weights: number of the layer's weights and biases.
    """
    return np.linspace(-100.0, 100.0, weights // 100)


def bins(weights: int) -> int:
    """Return the length of a layer's part of a vector, from its number of weights and biases."""
    return max(len(edges(weights)) - 1, 0)


def act_bench_vector(network: nn.Module, inputs: Inputs, targets: Targets) -> NDArray[np.float64]:
    """Compute a network's vector "Fisher log eigenvalue CDF".

    Args:
        network: returns (B, C) logits; stays unchanged.
        inputs: (B, ...), as for ``fim_spectra``; float32 as for the released vectors.
        targets: (B,) integers in [0, C), the true ones.

    Returns:
        (n,) float64 in [0, 1], rising to 1 within each layer with a gradient.

    Raises:
        FeatureError: as ``kronecker_factors``; or the eigenvalues do not converge, or a layer
            without a bias has factors that do not fit into float32.
    """
    options = FisherOptions(fisher="empirical", loss="cross_entropy", statistics="running")
    factors = kronecker_factors(network, inputs, targets, options=options)
    batch = batch_size(taken(inputs, network))
    parts = []
    for layer in factors.layers:
        if layer.kind != "weight" or layer.weights < 200:
            continue
        logs = _log_eigenvalues(layer, batch)
        counts, _ = np.histogram(logs, edges(layer.weights))
        sums = np.cumsum(counts, dtype=np.float64)
        parts.append(sums / max(sums[-1], 1.0))
    return np.concatenate(parts) if parts else np.empty(0)


def _log_eigenvalues(layer: LayerFactors, batch: int) -> NDArray[np.floating]:
    """Return the logarithms of the positive eigenvalues, (n,) with n at most the weights."""
    share = batch / (layer.a.shape[1] - layer.biased + 1) if layer.linear else 1.0
    # In this order, so that the same numbers leave float32's range as in their computation.
    a, g = layer.a * share, layer.g * (share / batch**2)
    dtype = torch.float64 if layer.biased else torch.float32
    a, g = a.to(dtype), g.to(dtype)
    if not bool(a.isfinite().all() and g.isfinite().all()):
        raise FeatureError(f"factors too large for float32 at layer {layer.name!r}")
    values_a, values_g = factor_values(replace(layer, a=a, g=g), dead_as_zero=False)
    if not layer.biased:
        values_a, values_g = values_a.astype(np.float32), values_g.astype(np.float32)
    values = (values_a[:, :, None] * values_g[:, None, :]).ravel()
    logs: NDArray[np.floating] = np.log(values[values > 0])
    return logs

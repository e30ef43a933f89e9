"""Fisher spectra in the form of the Act-Bench files, to place a new function beside released ones.

The layout, for each layer of w weights and biases in the order of the network: the edges
``linspace(-100, 100, w // 100)`` of natural-log eigenvalues, the counts between them, summed up and
divided by the last sum; all layers in one vector (13,683 numbers for All-CNN-C with 10 classes).

The released numbers are those of Bingham and Miikkulainen (2023), arXiv 2301.05785: the empirical
Fisher matrix of the mean loss on one batch, with normalization layers at their initial running
statistics, linear and convolutional layers alone. What they did besides is not repeated here,
because it is no property of the function:

- linear layers on token sequences were flattened to one long vector (here: each token a position);
- depthwise convolutions pooled their channels into one factor (here: a block a channel);
- the input factor of linear layers was divided by the features plus 1 (here: by the images);
- strided convolutions with "same" padding were aligned differently;
- a layer that no gradient reaches was left out, shifting all that follow (here: zeros);
- their eigenvalues were computed in float32, so that null eigenvalues are rounding errors of either
  sign, of which the positive ones were counted; here they are others, of the same size in float32.

Vectors of one source compare among themselves; across both, compare layers of known treatment.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.features.kfac import kronecker_factors
from bo_act.features.spectrum import factor_values

__all__ = ["act_bench_vector", "edges"]


def edges(weights: int) -> NDArray[np.float64]:
    """Return the edges of a layer's histogram; fewer than two make no bins.

    Args:
        weights: number of the layer's weights and biases.
    """
    return np.linspace(-100.0, 100.0, weights // 100)


def act_bench_vector(network: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Compute a network's vector "Fisher log eigenvalue CDF".

    Args:
        network: maps (B, ...) images to (B, C) logits; left as it was.
        images: (B, ...), of the network's dtype and on its device.
        labels: (B,) integers in [0, C), the true ones.

    Returns:
        (n,) float64 in [0, 1], rising to 1 within each layer that a gradient reaches.

    Raises:
        FeatureError: as ``kronecker_factors``.
    """
    factors = kronecker_factors(
        network, images, labels, fisher="empirical", statistics="running"
    )  # fmt: skip
    parts = []
    for layer in factors.layers:
        if layer.kind != "weight" or layer.weights < 200:
            continue
        # The mean loss has 1/B of each image's gradient, and G is its square.
        values_a, values_g = factor_values(layer)
        values = (values_a[:, :, None] * values_g[:, None, :]).ravel()
        logs = np.log(values[values > 0]) - 2 * np.log(len(images))
        counts, _ = np.histogram(logs, edges(layer.weights))
        sums = np.cumsum(counts, dtype=np.float64)
        parts.append(sums / max(sums[-1], 1.0))
    return np.concatenate(parts) if parts else np.empty(0)

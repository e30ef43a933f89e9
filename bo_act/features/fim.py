"""Spectra of a network's Fisher information matrix, as features of its activation function.

Symbols, with shapes (those of the factors are in ``bo_act.features.kfac``):

    L    layers that the factors cover
    Q    quantiles of one layer's spectrum
    k, p, q  groups of a layer; inputs (and bias) and outputs of one group
    λ_A  (k, p) eigenvalues of a layer's input factor
    λ_G  (k, q) eigenvalues of its output-gradient factor
    λ    (k·p·q,) eigenvalues of its block A ⊗ G: all products λ_A · λ_G within a group
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.errors import FeatureError
from bo_act.features.kfac import Fisher, LayerFactors, kronecker_factors

__all__ = ["NULL_LOG", "FimSpectra", "fim_spectra", "log_eigenvalues"]

# Stands for every quantile of a layer that has null eigenvalues alone (no gradient arrives): the
# lower end of the published histograms, below what living layers have, and still near enough to
# them that one dead layer does not outweigh all differences among living ones.
NULL_LOG = -100.0


@dataclass(frozen=True, eq=False)
class FimSpectra:
    """The spectra of all covered layers.

    Attributes:
        quantiles: (L, Q) float64, quantiles (i + 1/2)/Q of the natural logarithm of the layer's
            non-null eigenvalues, ascending; ``NULL_LOG`` where there are none.
        null_mass: (L,) float64 in [0, 1], share of the layer's eigenvalues that are numerically
            zero.
        weights: (L,) int64, number of the layer's weights and biases.
        layers: names of the layers.
        uncovered: names of modules whose parameters are in no block.
    """

    quantiles: NDArray[np.float64]
    null_mass: NDArray[np.float64]
    weights: NDArray[np.int64]
    layers: tuple[str, ...]
    uncovered: tuple[str, ...]


def fim_spectra(
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    *,
    fisher: Fisher = "mc",
    quantiles: int = 128,
    seed: int = 0,
) -> FimSpectra:
    """Compute the spectrum of each layer's block of the Fisher matrix by K-FAC.

    The mean absolute difference of two layers' quantiles is the Wasserstein-1 distance of their
    log spectra, up to the resolution of 1/Q. No value returned is NaN or infinite.

    Args:
        network: maps (B, ...) images to (B, C) logits; left as it was.
        images: (B, ...), of the network's dtype and on its device.
        labels: (B,) integers in [0, C); used by ``fisher="empirical"`` alone, else may be None.
        fisher: ``mc``, ``exact`` or ``empirical``, see ``kronecker_factors``.
        quantiles: Q, numbers that each layer's spectrum is summarized as.
        seed: of the labels drawn for ``mc``.

    Raises:
        FeatureError: as ``kronecker_factors``; or the eigenvalues do not converge.
    """
    if quantiles < 1:
        raise FeatureError(f"expected at least one quantile, got {quantiles}")
    factors = kronecker_factors(network, images, labels, fisher=fisher, seed=seed)
    spectra = [log_eigenvalues(layer) for layer in factors.layers]
    weights = np.array([layer.weights for layer in factors.layers], dtype=np.int64)
    alive = np.array([len(spectrum) for spectrum in spectra], dtype=np.int64)
    return FimSpectra(
        quantiles=np.stack([_quantiles(spectrum, quantiles) for spectrum in spectra]),
        null_mass=(weights - alive) / weights,
        weights=weights,
        layers=tuple(layer.name for layer in factors.layers),
        uncovered=factors.uncovered,
    )


def log_eigenvalues(layer: LayerFactors) -> NDArray[np.float64]:
    """Return the natural logarithms of a block's non-null eigenvalues, ascending.

    The eigenvalues of A ⊗ G are the products of those of A and G, so their logarithms are the
    outer sum of two short vectors.

    Returns:
        (n,) float64 with n between 0 and ``layer.weights``; the other eigenvalues are null.

    Raises:
        FeatureError: the eigenvalues do not converge.
    """
    log_a = _log_spectrum(layer.a, layer)
    log_g = _log_spectrum(layer.g, layer)
    sums = log_a[:, :, None] + log_g[:, None, :]
    alive: NDArray[np.float64] = sums[sums > -np.inf]
    alive.sort()
    return alive


def _log_spectrum(factor: Tensor, layer: LayerFactors) -> NDArray[np.float64]:
    """Return (k, n) logarithms of the eigenvalues of (k, n, n) factors, -inf for the null ones."""
    try:
        values: NDArray[np.float64] = torch.linalg.eigvalsh(factor).cpu().numpy()
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise FeatureError(f"eigenvalues of layer {layer.name!r} do not converge") from error
    # Rounding of a matrix of size n moves its eigenvalues by up to about eps · n · the largest
    # one (the rule of numpy's matrix_rank), so that what lies below cannot be told from zero.
    # eps is that of the dtype in which the factor was summed, not of eigvalsh's float64.
    floor = layer.eps * values.shape[-1] * values[:, -1:]
    logs = np.full_like(values, -np.inf)
    return np.log(values, out=logs, where=values > np.maximum(floor, 0.0))


def _quantiles(ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the inverse of the empirical distribution function at (i + 1/2)/count."""
    if len(ordered) == 0:
        return np.full(count, NULL_LOG)
    odd = 2 * np.arange(count) + 1
    # The smallest index j with (j + 1)/n >= (2i + 1)/(2 count), in integers: no rounding.
    return ordered[-(-odd * len(ordered) // (2 * count)) - 1]

"""Spectra of a network's Fisher information matrix, as features of its activation function.

Symbols, with shapes (those of the factors are in ``bo_act.fisher.kfac``):

    L    layers that the factors cover
    Q    quantiles of one layer's spectrum
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bo_act.errors import FeatureError
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.calls import Inputs, Targets
from bo_act.fisher.kfac import (
    Fisher,
    Loss,
    Sharing,
    Statistics,
    kronecker_factors,
    refuse_randomness,
)
from bo_act.fisher.layer_spectrum import NULL_LOG, faster_device, spectra
from bo_act.specs.base import whole
from bo_act.torch_state import plain_torch

__all__ = ["NULL_LOG", "FimSpectra", "fim_spectra"]


@dataclass(frozen=True, eq=False)
class FimSpectra:
    """The spectra of all covered layers.

    Attributes:
        quantiles: (L, Q) float64, quantiles (i + 1/2)/Q of the natural logarithms of the layer's
            eigenvalues, ascending; ``NULL_LOG`` throughout where no gradient arrives.
        null_mass: (L,) float64 in [0, 1], share of the layer's eigenvalues that cannot be told
            from zero.
        weights: (L,) int64, number of the layer's weights and biases.
        layers: names of the layers.
        uncovered: names of layers and parameters that are in no block.
        kinds: of the layers: ``weight`` (linear, convolution), ``norm`` or ``embedding``.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        >>> network = torch.nn.Sequential(*layers)
        >>> found = fim_spectra(network, torch.randn(16, 4), quantiles=32)
        >>> found.layers, found.quantiles.shape
        (('0', '2'), (2, 32))
    """

    quantiles: NDArray[np.float64]
    null_mass: NDArray[np.float64]
    weights: NDArray[np.int64]
    layers: tuple[str, ...]
    uncovered: tuple[str, ...]
    kinds: tuple[str, ...] = ()


@plain_torch()
def fim_spectra(
    network: nn.Module,
    inputs: Inputs,
    targets: Targets | None = None,
    *,
    fisher: Fisher = "mc",
    loss: Loss | None = None,
    label_smoothing: float = 0.0,
    weight_sharing: Sharing = "expand",
    statistics: Statistics = "batch",
    quantiles: int = 128,
    seed: int = 0,
    shared: InputFactorCache | None = None,
) -> FimSpectra:
    """Compute the spectrum of each layer's block of the Fisher matrix by K-FAC.

    The mean absolute difference of two layers' quantiles is the Wasserstein-1 distance of their
    log spectra, up to the resolution of 1/Q. No value returned is NaN or infinite.

    Args:
        network: returns (B, C), (B, T, V) or (B,) outputs, or has them as ``logits`` in what it
            returns; left as it was.
        inputs: one batch, as the network takes it: a tensor or array (B, ...), of images, tokens
            or numbers, or a dict or tuple of some for ``network(**inputs)`` or
            ``network(*inputs)``. Tensors are on the network's device and, where floating, of its
            dtype; arrays are put there.
        targets: (B,) or (B, T) classes, or targets shaped like the outputs; used by
            ``fisher="empirical"`` alone, and to tell which tokens have no loss: those of -100.
        fisher: ``mc``, ``exact`` or ``empirical``; this one and the next four are explained at
            ``kronecker_factors``.
        loss: ``cross_entropy``, ``binary_cross_entropy`` or ``mse``; None where the targets tell.
        label_smoothing: of the true classes.
        weight_sharing: ``expand`` or ``reduce``.
        statistics: ``batch`` or ``running``.
        quantiles: Q, numbers that each layer's spectrum is summarized as.
        seed: of the targets drawn for ``mc``.
        shared: given for each of many functions of one network on the same images, it saves what
            they have in common; the network is then checked for randomness once, not each time.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Embedding(50, 8), nn.SiLU(), nn.Linear(8, 50))
        >>> spectra = fim_spectra(network, torch.randint(50, (4, 12)), quantiles=16)
        >>> spectra.layers, spectra.quantiles.shape, spectra.weights.tolist()
        (('0', '2'), (2, 16), [400, 450])

    Raises:
        FeatureError: as ``kronecker_factors``; or the network's outputs are random; or the
            eigenvalues do not converge.
    """
    whole(quantiles, "quantiles", low=1, high=1_000_000, error=FeatureError)
    if shared is None or not shared.checked:
        refuse_randomness(network, inputs, statistics=statistics)
    factors = kronecker_factors(
        network,
        inputs,
        targets,
        fisher=fisher,
        loss=loss,
        label_smoothing=label_smoothing,
        weight_sharing=weight_sharing,
        statistics=statistics,
        seed=seed,
        shared=shared,
    )
    device = None
    if shared is not None:
        if not shared.checked:
            shared.checked, shared.solver = True, faster_device(list(factors.layers))
        device = shared.solver
    found = spectra(factors.layers, shared=shared, device=device)
    return FimSpectra(
        quantiles=np.stack([_quantiles(one.logs, quantiles) for one in found]),
        null_mass=np.array([one.null_mass for one in found]),
        weights=np.array([layer.weights for layer in factors.layers], dtype=np.int64),
        layers=tuple(layer.name for layer in factors.layers),
        uncovered=factors.uncovered,
        kinds=tuple(layer.kind for layer in factors.layers),
    )


def _quantiles(ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the inverse of the empirical distribution function at (i + 1/2)/count."""
    odd = 2 * np.arange(count) + 1
    # The smallest index j with (j + 1)/n >= (2i + 1)/(2 count), in integers: no rounding.
    return ordered[-(-odd * len(ordered) // (2 * count)) - 1]

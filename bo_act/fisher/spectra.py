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

from bo_act.dependencies.torch_state import plain_torch
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.calls import Inputs, Targets
from bo_act.fisher.kfac import kronecker_factors, refuse_randomness
from bo_act.fisher.layer_spectrum import NULL_LOG, faster_device, spectra
from bo_act.fisher.options import Fisher, FisherOptions, Loss, Sharing, Statistics

__all__ = ["NULL_LOG", "FimSpectra", "fim_spectra", "network_spectra"]


@dataclass(frozen=True, eq=False)
class FimSpectra:
    """The spectra of all covered layers.

    Attributes:
        quantiles: (L, Q) float64, quantiles (i + 1/2)/Q of the natural logarithms of the layer's
            eigenvalues, ascending; ``NULL_LOG`` throughout if no gradient arrives.
        null_mass: (L,) float64 in [0, 1], share of the layer's eigenvalues that are zero up to
            rounding.
        weights: (L,) int64, number of the layer's weights and biases.
        layers: names of the layers.
        uncovered: names of layers and parameters without a block.
        kinds: of the layers: ``weight`` (linear, convolution), ``norm`` or ``embedding``.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        >>> network = torch.nn.Sequential(*layers)
        >>> spectra = fim_spectra(network, torch.randn(16, 4), quantiles=32)
        >>> spectra.layers, spectra.quantiles.shape
        (('0', '2'), (2, 32))
    """

    quantiles: NDArray[np.float64]
    null_mass: NDArray[np.float64]
    weights: NDArray[np.int64]
    layers: tuple[str, ...]
    uncovered: tuple[str, ...]
    kinds: tuple[str, ...] = ()


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
) -> FimSpectra:
    """Compute the spectrum of each layer's block of the Fisher matrix by K-FAC.

    The mean absolute difference of two layers' quantiles is the Wasserstein-1 distance of their
    log spectra, up to the resolution of 1/Q. No value returned is NaN or infinite.

    Args:
        network: returns (B, C) outputs, (B, T, V) with one distribution for each token, or (B,);
            or a dict with such "logits", or an object with such ``logits``. It stays unchanged.
        inputs: one batch, as the network takes it: a tensor or array (B, ...), of images, tokens
            or numbers, or a dict or tuple of some for ``network(**inputs)`` or
            ``network(*inputs)``, the first with B first. Tensors are on the network's device and,
            where floating, of its dtype; arrays are put there.
        targets: (B,) integers in [0, C), or (B, C) probabilities (for ``mse`` targets of any size,
            for ``binary_cross_entropy`` from 0 to 1 each; (B,) for (B,) outputs); for tokens
            (B, T) or (B, T, V), where tokens with the target -100 have no loss. Apart from that,
            only ``fisher="empirical"`` needs them.
        fisher: where the targets in the Fisher matrix come from: one drawn for each example from
            the network's prediction (``mc``), all of them weighted by it (``exact``, C backward
            passes, or C per token), or the true ones (``empirical``).
        loss: what the outputs mean: ``cross_entropy`` (logits of classes),
            ``binary_cross_entropy`` (of 0/1 labels) or ``mse`` (means). None:
            ``mse`` if the targets are floating-point numbers shaped like the outputs,
            ``cross_entropy`` if they are classes or there are none.
        label_smoothing: of the true classes, as in ``nn.CrossEntropyLoss``.
        weight_sharing: how to treat a layer used at many positions of an image: positions as
            separate images (``expand``), or summed first (``reduce``).
        statistics: of layers that keep running statistics: those of the batch (``batch``), leaving
            the running ones as they are, or the running ones (``running``).
        quantiles: Q, numbers per layer's spectrum.
        seed: of the targets drawn for ``mc``.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Embedding(50, 8), nn.SiLU(), nn.Linear(8, 50))
        >>> spectra = fim_spectra(network, torch.randint(50, (4, 12)), quantiles=16)
        >>> spectra.layers, spectra.quantiles.shape, spectra.weights.tolist()
        (('0', '2'), (2, 16), [400, 450])

    Raises:
        FeatureError: an option is unknown or does not fit; no layer is covered, or the network
            hides its layers; its outputs are random, or it changes in place what its gradients
            need; a value is not finite (the message names the layer); or the eigenvalues do not
            converge.
    """
    options = FisherOptions(
        fisher=fisher,
        loss=loss,
        label_smoothing=label_smoothing,
        weight_sharing=weight_sharing,
        statistics=statistics,
        quantiles=quantiles,
        seed=seed,
    )
    return network_spectra(network, inputs, targets, options=options)


@plain_torch()
def network_spectra(
    network: nn.Module,
    inputs: Inputs,
    targets: Targets | None = None,
    *,
    options: FisherOptions,
    shared: InputFactorCache | None = None,
) -> FimSpectra:
    """Compute ``fim_spectra`` for one of many functions of a network.

    Args:
        network: as for ``fim_spectra``, and so are the next two.
        inputs: one batch.
        targets: of the predictions, or None.
        options: which Fisher matrix, and how to summarize it.
        shared: cache for many functions of one network on the same images; with it, the network is
            checked for randomness once.

    Raises:
        FeatureError: as ``fim_spectra``.
    """
    if shared is None or not shared.checked:
        refuse_randomness(network, inputs, statistics=options.statistics)
    factors = kronecker_factors(network, inputs, targets, options=options, shared=shared)
    device = None
    if shared is not None:
        if not shared.checked:
            shared.checked, shared.solver = True, faster_device(list(factors.layers))
        device = shared.solver
    layer_spectra = spectra(factors.layers, shared=shared, device=device)
    return FimSpectra(
        quantiles=np.stack([_quantiles(s.logs, int(options.quantiles)) for s in layer_spectra]),
        null_mass=np.array([s.null_mass for s in layer_spectra]),
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

"""The spectrum of one layer's block of the Fisher matrix, from its Kronecker factors.

Symbols, with shapes:

    λ_A, λ_G   (k, p) and (k, q) eigenvalues of a layer's factors
    φ_A, φ_G   (k, 1) floors, upper bounds of rounding errors, see ``bo_act.fisher.rounding``
    λ          (k·p·q,) eigenvalues of A ⊗ G: all products λ_A · λ_G within a group
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bo_act.dependencies.torch_state import one_core_in_this_thread
from bo_act.errors import FeatureError
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.eigenvalues import eigenvalues
from bo_act.fisher.layers.trace import LayerFactors
from bo_act.fisher.rounding import RAMP

__all__ = ["NULL_LOG", "Spectrum", "factor_values", "faster_device", "spectra", "spectrum"]

NULL_LOG = -100.0
"""No logarithm is below: the lower end of the published histograms, below what living layers have,
and still near enough to them that one dead layer does not outweigh all others."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The spectrum of one layer's block.

    Attributes:
        logs: (k·p·q,) float64, ascending: the natural logarithms of (λ_A + φ_A)(λ_G + φ_G). With
            the floors φ all logarithms are finite, and changes of a factor below its floor change
            every number only a little.
        null_mass: share of the eigenvalues that are null, in [0, 1].
    """

    logs: NDArray[np.float64]
    null_mass: float


def spectrum(
    layer: LayerFactors,
    *,
    shared: InputFactorCache | None = None,
    device: torch.device | None = None,
) -> Spectrum:
    """Return the spectrum of a layer's block A ⊗ G: all products λ_A λ_G.

    Args:
        layer: factors of one layer.
        shared: cache of the spectra of shared input factors.
        device: where to compute eigenvalues; default: the factors' device.

    Raises:
        FeatureError: the eigenvalues do not converge, or are wrong.
    """
    values_a, values_g = factor_values(layer, shared=shared, device=device)
    logs_a, null_a = _softened(values_a, layer.floor)
    logs_g, null_g = _softened(values_g, layer.floor)
    sums = (logs_a[:, :, None] + logs_g[:, None, :]).ravel()
    sums.sort()
    null = null_a + null_g - null_a * null_g
    return Spectrum(np.maximum(sums, NULL_LOG), float(null.mean()))


def spectra(
    layers: Sequence[LayerFactors],
    *,
    shared: InputFactorCache | None = None,
    device: torch.device | None = None,
) -> list[Spectrum]:
    """Return the spectrum of each layer, on the CPU several at a time.

    Eigenvalue solvers hardly gain from a second core, and slow down if it is busy, because threads
    wait for each other at every column. One thread per matrix uses all cores.

    Args:
        layers: factors of each layer.
        shared: as for ``spectrum``.
        device: as for ``spectrum``.

    Raises:
        FeatureError: as for ``spectrum``, for the first layer that fails.
    """
    of_layer = partial(spectrum, shared=shared, device=device)
    threads = min(torch.get_num_threads(), len(layers))
    here = {layer.a.device.type for layer in layers} | ({device.type} if device else set())
    if threads < 2 or here != {"cpu"}:
        return [of_layer(layer) for layer in layers]
    size = [max(layer.a.shape[-1], layer.g.shape[-1]) for layer in layers]
    with ThreadPoolExecutor(threads, initializer=one_core_in_this_thread) as pool:
        # The largest first, so that no thread has one left at the end.
        order = sorted(range(len(layers)), key=lambda index: -size[index])
        futures = {index: pool.submit(of_layer, layers[index]) for index in order}
        try:
            return [futures[index].result() for index in range(len(layers))]
        finally:
            for rest in futures.values():
                rest.cancel()


def factor_values(
    layer: LayerFactors,
    *,
    shared: InputFactorCache | None = None,
    device: torch.device | None = None,
    dead_as_zero: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvalues of both factors, (k, p) and (k, q), ascending.

    See ``spectrum`` and, for ``dead_as_zero``, ``eigenvalues``.
    """
    known = shared.spectra.get(layer.name) if shared and layer.shared else None
    try:
        if known is None and layer.kind == "embedding":
            known = layer.a.sort().values
        elif known is None:
            known = eigenvalues(layer.a, device=device, dead_as_zero=dead_as_zero)
            if shared and layer.shared:
                shared.spectra[layer.name] = known
        values_g = eigenvalues(layer.g, device=device, dead_as_zero=dead_as_zero)
    except FeatureError as error:
        raise FeatureError(f"eigenvalues at layer {layer.name!r}: {error}") from error
    return known.cpu().numpy(), values_g.cpu().numpy()


def _softened(
    values: NDArray[np.float64], floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (k, n) log(λ + φ), and the share of null eigenvalues of each matrix, (k,)."""
    values = np.maximum(values, 0.0)  # factors are positive semidefinite
    trace = values.sum(-1, keepdims=True)
    shares = values / np.where(trace > 0, trace, 1.0)
    with np.errstate(divide="ignore"):
        logs = np.log(shares + floor) + np.log(trace)
        above = np.log(shares) - np.log(floor)
    null = np.clip(0.5 - above / (2 * np.log(RAMP)), 0.0, 1.0)
    return logs, null.mean(-1)


def faster_device(layers: list[LayerFactors]) -> torch.device:
    """Measure once whether GPU or CPU is faster at the eigenvalues of these layers."""
    here = layers[0].a.device
    if here.type == "cpu":
        return here
    seconds = {}
    for device in (here, torch.device("cpu")):
        for _ in range(2):  # the first call loads libraries
            start = time.perf_counter()
            for layer in layers:
                for factor in (layer.a, layer.g):
                    if factor.dim() == 3:  # an embedding has a diagonal
                        eigenvalues(factor, device=device)
            seconds[device] = time.perf_counter() - start
    return min(seconds, key=lambda device: seconds[device])

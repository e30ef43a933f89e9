"""Eigenvalues of Kronecker factors, and what they make of a layer's spectrum.

Symbols, with shapes:

    k, n     matrices of one size, and that size
    λ_A, λ_G (k, p) and (k, q) eigenvalues of a layer's factors
    λ        (k·p·q,) eigenvalues of A ⊗ G: all products λ_A · λ_G within a group
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import FeatureError
from bo_act.features.layers import LayerFactors
from bo_act.features.shared import Shared

__all__ = ["eigenvalues", "faster_device", "log_eigenvalues"]

# Below this size the eigenvalues cost next to nothing in float64.
_SMALL = 128

# How far trace and Frobenius norm may be off, relative to their own size. Solvers are right to
# about eps·sqrt(n); what has to be caught is a wrong answer.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def log_eigenvalues(
    layer: LayerFactors,
    *,
    floor: bool = True,
    shared: Shared | None = None,
    device: torch.device | None = None,
) -> NDArray[np.float64]:
    """Return the natural logarithms of a block's non-null eigenvalues, ascending.

    The eigenvalues of A ⊗ G are the products of those of A and G, so their logarithms are the
    outer sum of two short vectors.

    Args:
        layer: factors of one layer.
        floor: count eigenvalues that cannot be told from rounding errors as null; else those
            alone that are not positive.
        shared: where the spectrum of an input factor that all networks share is kept.
        device: where the eigenvalues are computed; default: where the factors are.

    Returns:
        (n,) float64 with n between 0 and ``layer.weights``; the other eigenvalues are null.

    Raises:
        FeatureError: the eigenvalues are not found, or not right.
    """
    log_a = shared.spectra.get(layer.name) if shared and layer.shared else None
    if log_a is None:
        log_a = _log_spectrum(layer.a, layer, floor=floor, device=device)
        if shared and layer.shared:
            shared.spectra[layer.name] = log_a
    log_g = _log_spectrum(layer.g, layer, floor=floor, device=device)
    sums = log_a[:, :, None] + log_g[:, None, :]
    alive: NDArray[np.float64] = sums[sums > -np.inf]
    alive.sort()
    return alive


def _log_spectrum(
    factor: Tensor, layer: LayerFactors, *, floor: bool, device: torch.device | None
) -> NDArray[np.float64]:
    """Return (k, n) logarithms of the eigenvalues of (k, n, n) factors, -inf for the null ones."""
    try:
        values = eigenvalues(factor, eps=layer.eps, device=device).cpu().numpy()
    except FeatureError as error:
        raise FeatureError(f"eigenvalues at layer {layer.name!r}: {error}") from error
    # Rounding of a matrix of size n moves its eigenvalues by up to about eps · n · the largest
    # one (the rule of numpy's matrix_rank), so that what lies below cannot be told from zero.
    # eps is that of the dtype in which the factor was summed, not of the solver's.
    least = layer.eps * values.shape[-1] * np.maximum(values[:, -1:], 0.0) if floor else 0.0
    logs: NDArray[np.float64] = np.full_like(values, -np.inf)
    np.log(values, out=logs, where=values > least)
    return logs


def eigenvalues(
    matrices: Tensor, *, eps: float = 0.0, device: torch.device | None = None
) -> Tensor:
    """Return the eigenvalues of symmetric matrices, ascending, checked.

    Factors that were summed in float32 are wrong by about eps · n of their largest eigenvalue, so
    float32 is as good a solver for them as any, at half the time. Sum and sum of squares have to
    be the trace and the squared Frobenius norm: some versions of GPU solvers fail silently. What
    fails, or does not converge, is done again in float64 on the CPU.

    Args:
        matrices: (k, n, n) float64, symmetric.
        eps: machine epsilon of the dtype that they were summed in.
        device: where to compute; default: where they are.

    Returns:
        (k, n) float64.

    Raises:
        FeatureError: even then they are not right.
    """
    n = matrices.shape[-1]
    # Scaled by the trace, so that float32 neither overflows nor loses what is small.
    scale = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1).clamp_min(1e-300)[:, None, None]
    # A product x xᵀ is symmetric up to rounding; solvers read one half, the check reads both.
    scaled = (matrices + matrices.mT) / (2 * scale)
    coarse = n >= _SMALL and eps >= torch.finfo(torch.float32).eps
    attempts = [torch.float32] * coarse + [torch.float64]
    places = [device or matrices.device] * len(attempts) + [torch.device("cpu")]
    for dtype, place in zip([*attempts, torch.float64], places, strict=True):
        try:
            values: Tensor = torch.linalg.eigvalsh(scaled.to(place, dtype))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        values = values.to(matrices.device).double()
        if _right(scaled, values, _TOLERANCE[dtype]):
            result: Tensor = values * scale[:, :, 0]
            return result
    raise FeatureError(
        f"those of a matrix of size {n} do not converge, or not to its trace and Frobenius norm, "
        f"neither on {places[0]} nor in float64 on the CPU"
    )


def _right(matrices: Tensor, values: Tensor, tolerance: float) -> bool:
    """Compare eigenvalues (k, n) with trace and Frobenius norm of their matrices."""
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    norm = matrices.square().sum((-2, -1))
    size = norm.sqrt() * matrices.shape[-1] ** 0.5  # at least the sum of the absolute values
    return bool(
        ((values.sum(-1) - trace).abs() <= tolerance * size).all()
        and ((values.square().sum(-1) - norm).abs() <= tolerance * norm).all()
    )


def faster_device(layers: list[LayerFactors]) -> torch.device:
    """Measure once whether the GPU or the CPU is faster at the eigenvalues of these layers."""
    here = layers[0].a.device
    if here.type == "cpu":
        return here
    seconds = {}
    for place in (here, torch.device("cpu")):
        for _ in range(2):  # the first call loads libraries
            start = time.perf_counter()
            for layer in layers:
                for factor in (layer.a, layer.g):
                    eigenvalues(factor, eps=layer.eps, device=place)
            seconds[place] = time.perf_counter() - start
    return min(seconds, key=lambda place: seconds[place])

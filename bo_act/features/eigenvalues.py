"""Eigenvalues of symmetric matrices, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import FeatureError

__all__ = ["eigenvalues"]

# Below this size the eigenvalues cost next to nothing in float64.
_SMALL = 128

_STEPS = 12  # of the power iteration

# Share of the trace from which the largest eigenvalue is taken out.
_DOMINANT = 0.6


def eigenvalues(
    matrices: Tensor, *, coarse: bool = False, device: torch.device | None = None
) -> Tensor:
    """Return the eigenvalues of symmetric matrices, ascending, checked.

    Sum and sum of squares have to be the trace and the squared Frobenius norm: some versions of GPU
    solvers fail silently. What fails, or does not converge, is done again in float64 on the CPU.

    Args:
        matrices: (k, n, n) float64, symmetric.
        coarse: solve in float32, at half the time: good enough for products that were formed in
            float32. One direction that has more than half of the trace (the mean of the inputs,
            mostly) is taken out before, or its rounding errors would drown the small eigenvalues.
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
    solvers = [_double, _double]
    places = [device or matrices.device, torch.device("cpu")]
    if coarse and n >= _SMALL:
        solvers.insert(0, _single)
        places.insert(0, places[0])
    for solve, place in zip(solvers, places, strict=True):
        try:
            values = solve(scaled.to(place)).to(matrices.device)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if _right(scaled, values, _TOLERANCE[solve]):
            result: Tensor = values * scale[:, :, 0]
            return result
    raise FeatureError(
        f"those of a matrix of size {n} do not converge, or not to its trace and Frobenius norm, "
        f"neither on {places[0]} nor in float64 on the CPU"
    )


def _double(matrices: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrices.double())
    return values


def _single(matrices: Tensor) -> Tensor:
    """Return eigenvalues (k, n) by the float32 solver, without the direction of the largest one."""
    v = matrices.sum(-1, keepdim=True)
    for _ in range(_STEPS):  # power iteration
        v = matrices @ torch.nn.functional.normalize(v, dim=1)
    v = torch.nn.functional.normalize(v, dim=1)
    image = matrices @ v
    largest = v.mT @ image
    rest = 1.0 - largest  # of the trace, which is 1
    # What is cut off with the direction moves the other eigenvalues by its square over the gap.
    moved = (image - v * largest).square().sum(1, keepdim=True) / (2 * largest - 1).clamp_min(1e-3)
    if not bool(((largest > _DOMINANT) & (rest > 1e-12) & (moved < 1e-12)).all()):
        values: Tensor = torch.linalg.eigvalsh(matrices.float()).double()
        return values
    # In place of the direction's own eigenvalue stands one that is at least as large as all others.
    left = matrices - v @ image.mT - image @ v.mT + (largest + rest) * (v @ v.mT)
    others = torch.linalg.eigvalsh((left / rest).float()).double() * rest[:, :, 0]
    return torch.cat([others[:, :-1], largest[:, :, 0]], dim=1)


# How far trace and Frobenius norm may be off, relative to their own size. Solvers are right to
# about eps·sqrt(n); what has to be caught is a wrong answer.
_TOLERANCE = {_single: 1e-4, _double: 1e-10}


def _right(matrices: Tensor, values: Tensor, tolerance: float) -> bool:
    """Compare eigenvalues (k, n) with trace and Frobenius norm of their matrices."""
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    norm = matrices.square().sum((-2, -1))
    size = norm.sqrt() * matrices.shape[-1] ** 0.5  # at least the sum of the absolute values
    return bool(
        ((values.sum(-1) - trace).abs() <= tolerance * size).all()
        and ((values.square().sum(-1) - norm).abs() <= tolerance * norm).all()
    )

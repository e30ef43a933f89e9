"""Eigenvalues of symmetric matrices, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import FeatureError

__all__ = ["eigenvalues"]

# Relative tolerance of trace and Frobenius norm. The solver is right to about eps·sqrt(n); this is
# to catch wrong answers.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


def eigenvalues(
    matrices: Tensor, *, device: torch.device | None = None, dead_as_zero: bool = True
) -> Tensor:
    """Return the eigenvalues of symmetric matrices, ascending, checked.

    Solved in the dtype of the matrices, float64 except for comparisons: float32 takes half the
    time, but its errors of 1e-7 of the largest eigenvalue would drown small, accurate ones. Sum
    and sum of squares must equal the trace and the squared Frobenius norm, because some GPU
    solvers fail silently. After a failure the CPU tries again.

    Args:
        matrices: (k, n, n) float64 or float32, symmetric.
        device: where to compute; default: the matrices' device.
        dead_as_zero: rows of zeros give eigenvalues of exactly 0; else the solver's rounding
            errors.

    Returns:
        (k, n) float64.

    Raises:
        FeatureError: the CPU fails, too.
    """
    alive = matrices.diagonal(dim1=-2, dim2=-1).ne(0).any(0)
    if (
        dead_as_zero and not bool(alive.all()) and bool(alive.any())
    ):  # dead units: the solver's time is cubic
        rest = eigenvalues(matrices[:, alive][:, :, alive], device=device)
        dead = rest.new_zeros(len(rest), int((~alive).sum()))
        return torch.cat([dead, rest], dim=1).sort(dim=1).values
    dtype, matrices = matrices.dtype, matrices.double()
    # Scaled by the trace, so that squares neither overflow nor vanish.
    scale = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1).clamp_min(1e-300)[:, None, None]
    if dtype == torch.float32:
        scale = scale.log2().ceil().exp2()  # powers of two add no rounding errors
    # A product x xᵀ is symmetric up to rounding; solvers read one half, the check reads both.
    scaled = (matrices + matrices.mT) / (2 * scale)
    first = device or matrices.device
    for solver in (first, torch.device("cpu")):
        try:
            values: Tensor = torch.linalg.eigvalsh(scaled.to(solver, dtype)).to(matrices)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if _right(scaled, values, _TOLERANCE[dtype]):
            result: Tensor = values * scale[:, :, 0]
            return result
    raise FeatureError(
        f"those of a matrix of size {matrices.shape[-1]} do not converge, or not to its trace and "
        f"Frobenius norm, neither on {first} nor on the CPU"
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

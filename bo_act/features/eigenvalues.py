"""Eigenvalues of symmetric matrices, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from bo_act.errors import FeatureError

__all__ = ["eigenvalues"]

# How far trace and Frobenius norm may be off, relative to their own size. The solver is right to
# about eps·sqrt(n); what has to be caught is a wrong answer.
_TOLERANCE = 1e-10


def eigenvalues(matrices: Tensor, *, device: torch.device | None = None) -> Tensor:
    """Return the eigenvalues of symmetric matrices, ascending, checked.

    Solved in float64: in float32, at half the time, the solver's own errors of 1e-7 of the largest
    eigenvalue would drown small ones that the factors have right. Sum and sum of squares have to be
    the trace and the squared Frobenius norm: some versions of GPU solvers fail silently. What
    fails, or does not converge, is done again on the CPU.

    Args:
        matrices: (k, n, n) float64, symmetric.
        device: where to compute; default: where they are.

    Returns:
        (k, n) float64.

    Raises:
        FeatureError: even then they are not right.
    """
    alive = matrices.diagonal(dim1=-2, dim2=-1).ne(0).any(0)
    if not bool(alive.all()) and bool(alive.any()):  # dead units: the solver's time is cubic
        rest = eigenvalues(matrices[:, alive][:, :, alive], device=device)
        dead = rest.new_zeros(len(rest), int((~alive).sum()))
        return torch.cat([dead, rest], dim=1).sort(dim=1).values
    # Scaled by the trace, so that squares neither overflow nor vanish.
    scale = matrices.diagonal(dim1=-2, dim2=-1).abs().sum(-1).clamp_min(1e-300)[:, None, None]
    # A product x xᵀ is symmetric up to rounding; solvers read one half, the check reads both.
    scaled = (matrices + matrices.mT) / (2 * scale)
    first = device or matrices.device
    for place in (first, torch.device("cpu")):
        try:
            values: Tensor = torch.linalg.eigvalsh(scaled.to(place)).to(matrices.device)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if _right(scaled, values):
            result: Tensor = values * scale[:, :, 0]
            return result
    raise FeatureError(
        f"those of a matrix of size {matrices.shape[-1]} do not converge, or not to its trace and "
        f"Frobenius norm, neither on {first} nor on the CPU"
    )


def _right(matrices: Tensor, values: Tensor) -> bool:
    """Compare eigenvalues (k, n) with trace and Frobenius norm of their matrices."""
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    norm = matrices.square().sum((-2, -1))
    size = norm.sqrt() * matrices.shape[-1] ** 0.5  # at least the sum of the absolute values
    return bool(
        ((values.sum(-1) - trace).abs() <= _TOLERANCE * size).all()
        and ((values.square().sum(-1) - norm).abs() <= _TOLERANCE * norm).all()
    )

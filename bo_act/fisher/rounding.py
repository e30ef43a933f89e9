"""What rounding leaves of a Kronecker factor's spectrum.

Symbols, with shapes:

    k, n   matrices of one layer, and their size
    λ      (k, n) eigenvalues of a factor
    φ      (k, 1) the floor: eigenvalues below it cannot be told from rounding errors
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["RAMP", "RESOLUTION", "outweighs_rounding", "rounding_floor"]

# Share of its trace below which an eigenvalue of a factor is null: a hundred times what rounding of
# inputs in float32, and of sums in float64, was seen to leave there.
RESOLUTION = 1e-13

# An eigenvalue counts as null in full below φ/RAMP, not at all above RAMP·φ, and in part between,
# so that nothing jumps when one crosses the floor.
RAMP = 4.0

# What rounding in float32 does to a sum, in eps √n. On All-CNN-C it was 0.4 to 17 where sums are
# taken, up to 50 for ten numbers over 100,000 positions, and more where sums are refused.
_ERROR = 64.0

# How far it may move the smallest eigenvalue then, relative to itself. It was 0.06 at most.
_MOVED = 0.5


def rounding_floor(inputs: float) -> float:
    """Return the share of a factor's trace below which an eigenvalue is lost in rounding errors.

    A factor is X Xᵀ, and what rounding does to X moves its singular values, the square roots of
    the eigenvalues, by no more than the norm of the change (Weyl): eps of the largest at most, so
    that eigenvalues are known down to eps² of the trace.

    Args:
        inputs: machine epsilon of the dtype of X.
    """
    return max(RESOLUTION, inputs * inputs)


def outweighs_rounding(sums: Tensor, multiplied: Tensor) -> bool:
    """Tell whether all eigenvalues of a sum of products in float32 are well above its errors.

    With D the square roots of what was multiplied, an entry is wrong by about eps·D_i·D_j, and so
    the sum by D E D, where E has a norm η of some eps √n. If sum - (η/r) D² is positive definite,
    the error is below r times the sum as a quadratic form, and no eigenvalue, however small, moves
    by more than r of itself (Courant-Fischer).

    Args:
        sums: (n, n) float64; rows of zeros are exact.
        multiplied: (n,) float64, the diagonal of what was multiplied in float32.
    """
    alive = sums.diagonal() > 0
    if not bool(alive.all()):
        sums, multiplied = sums[alive][:, alive], multiplied[alive]
    error = _ERROR * torch.finfo(torch.float32).eps * math.sqrt(len(sums))
    shifted = sums.clone()
    shifted.diagonal().sub_(multiplied, alpha=error / _MOVED)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0

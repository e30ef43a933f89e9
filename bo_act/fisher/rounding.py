"""Effects of rounding on a Kronecker factor's spectrum.

Symbols, with shapes:

    k, n   matrices of one layer, and their size
    λ      (k, n) eigenvalues of a factor
    φ      (k, 1) the floor: eigenvalues below it may be rounding errors
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["RAMP", "RESOLUTION", "outweighs_rounding", "rounding_floor"]

# Share of a factor's trace below which its eigenvalues are null: a hundred times the observed
# errors of float32 inputs and float64 sums.
RESOLUTION = 1e-13

# An eigenvalue counts fully as null below φ/RAMP, not at all above RAMP·φ, and partly between, so
# that nothing jumps at the floor.
RAMP = 4.0

# Float32 rounding error of a sum, in eps √n. On All-CNN-C it was 0.4 to 17 for accepted sums, up
# to 50 for ten numbers over 100,000 positions, and more for refused sums.
_ERROR = 64.0

# Accepted relative change of the smallest eigenvalue; 0.06 at most was observed.
_MOVED = 0.5


def rounding_floor(inputs: float) -> float:
    """Return the share of a factor's trace below which eigenvalues are lost in rounding errors.

    A factor is X Xᵀ, and rounding X moves its singular values, the square roots of the
    eigenvalues, by at most the norm of the change (Weyl), eps of the largest, so eigenvalues are
    accurate down to eps² of the trace.

    Args:
        inputs: machine epsilon of the dtype of X.
    """
    return max(RESOLUTION, inputs * inputs)


def outweighs_rounding(sums: Tensor, multiplied: Tensor) -> bool:
    """Tell whether all eigenvalues of a float32 sum of products are well above its errors.

    With D the square roots of ``multiplied``, an entry has an error of about eps·D_i·D_j, and the
    sum one of D E D, where E has a norm η of some eps √n. If sum - (η/r) D² is positive definite,
    the error as a quadratic form is below r times the sum, and no eigenvalue, however small, moves
    by more than r of itself (Courant-Fischer).

    Args:
        sums: (n, n) float64; rows of zeros are exact.
        multiplied: (n,) float64, the diagonal of the float32 product.
    """
    alive = sums.diagonal() > 0
    if not bool(alive.all()):
        sums, multiplied = sums[alive][:, alive], multiplied[alive]
    error = _ERROR * torch.finfo(torch.float32).eps * math.sqrt(len(sums))
    shifted = sums.clone()
    shifted.diagonal().sub_(multiplied, alpha=error / _MOVED)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0

"""What rounding leaves of a Kronecker factor's spectrum.

Symbols, with shapes:

    k, n   matrices of one layer, and their size
    λ      (k, n) eigenvalues of a factor
    φ      (k, 1) the floor: eigenvalues below it cannot be told from rounding errors
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DOUBLE", "RAMP", "RESOLUTION", "SINGLE", "Sums", "rounding_floor"]

SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps

# Share of its trace below which an eigenvalue of a factor that was summed in float64 is null: a
# hundred times what rounding of inputs in float32, and of sums in float64, was seen to leave there.
RESOLUTION = 1e-13

# An eigenvalue counts as null in full below φ/RAMP, not at all above RAMP·φ, and in part between,
# so that nothing jumps when one crosses the floor.
RAMP = 4.0


def rounding_floor(inputs: float, products: float, size: int) -> float:
    """Return the share of a factor's trace below which an eigenvalue is lost in rounding errors.

    A factor is X Xᵀ, and what rounding does to X moves its singular values, the square roots of
    the eigenvalues, by no more than the norm of the change (Weyl): eps of the largest at most, so
    that eigenvalues are known down to eps² of the trace. A rounded product X Xᵀ is another matter:
    each entry is wrong by about eps of itself, independently, which moves eigenvalues by up to
    2 eps/√n of the trace (the norm of a matrix of random signs). Twice that is the floor.

    Args:
        inputs: machine epsilon of the dtype of X.
        products: machine epsilon of the dtype of the products.
        size: n, rows of the factor.
    """
    summed = 4 * products / math.sqrt(size) if products > DOUBLE else 0.0
    return max(RESOLUTION, inputs * inputs, summed)


@dataclass(frozen=True, eq=False)
class Sums:
    """What the calls of a layer have summed of their inputs.

    Attributes:
        sums: (k, p, p) float64, or (k, p, B).
        eps: machine epsilon of the dtype that products were formed in.
        values: (k, p) eigenvalues of ``sums``, where they were asked for.
    """

    sums: Tensor
    eps: float = DOUBLE
    values: Tensor | None = None

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums, max(self.eps, other.eps))

    def unresolved(self) -> float:
        """Return the share of eigenvalues that are not well above the rounding errors."""
        if self.values is None:
            return 0.0
        floor = rounding_floor(0.0, self.eps, self.values.shape[-1])
        least = RAMP * floor * self.sums.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return float((self.values < least).double().mean())

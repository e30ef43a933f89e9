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

__all__ = ["RAMP", "RESOLUTION", "SINGLE", "Sums", "floor_of_sums", "rounding_floor"]

SINGLE = torch.finfo(torch.float32).eps

# Share of its trace below which an eigenvalue of a factor that was summed in float64 is null: a
# hundred times what rounding of inputs in float32, and of sums in float64, was seen to leave there.
RESOLUTION = 1e-13

# An eigenvalue counts as null in full below φ/RAMP, not at all above RAMP·φ, and in part between,
# so that nothing jumps when one crosses the floor.
RAMP = 4.0


def rounding_floor(inputs: float, sums: float = 0.0) -> float:
    """Return the share of a factor's trace below which an eigenvalue is lost in rounding errors.

    A factor is X Xᵀ, and what rounding does to X moves its singular values, the square roots of
    the eigenvalues, by no more than the norm of the change (Weyl): eps of the largest at most, so
    that eigenvalues are known down to eps² of the trace.

    Args:
        inputs: machine epsilon of the dtype of X.
        sums: share of the trace that rounding of the sums themselves stays below.
    """
    return max(RESOLUTION, inputs * inputs, sums)


def floor_of_sums(size: int) -> float:
    """Return what rounding in float32 does to a sum of products X Xᵀ, as a share of its trace.

    Each entry is wrong by about eps of itself, independently of the others, which moves eigenvalues
    by up to 2 eps/√n of the trace (the norm of a matrix of random signs). Twice that is returned.

    Args:
        size: n, rows of the factor.
    """
    return 4 * SINGLE / math.sqrt(size)


@dataclass(frozen=True, eq=False)
class Sums:
    """What the calls of a layer have summed of their inputs.

    Attributes:
        sums: (k, p, p) float64, or (k, p, B).
        floor: share of the trace that rounding of the sums stays below.
        values: (k, p) eigenvalues of ``sums``, where they were asked for.
    """

    sums: Tensor
    floor: float = 0.0
    values: Tensor | None = None

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums, max(self.floor, other.floor))

    def unresolved(self) -> float:
        """Return the share of eigenvalues that are not well above the rounding errors."""
        if self.values is None:
            return 0.0
        least = RAMP * self.floor * self.sums.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return float((self.values < least).double().mean())

"""Derive the polynomials of bo_act/exports/coefficients.py: python tests/export_coefficients.py.

Chebyshev interpolation of functions that have no singularity left, evaluated by mpmath with 40
digits, rewritten as powers of t and rounded to 12 digits.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.polynomial import chebyshev

mpmath.mp.dps = 40


def z_of(t: mpmath.mpf, scale: float) -> mpmath.mpf:
    """t = (scale - z) / (scale + z) maps z from [0, inf) to (-1, 1]."""
    return scale * (1 - t) / (1 + t) if t > -1 else mpmath.inf


def erfc_factor(t: mpmath.mpf) -> mpmath.mpf:
    """e^(z^2) erfc(z) (1 + z)."""
    z = z_of(t, 2)
    return mpmath.exp(z * z) * mpmath.erfc(z) * (1 + z)


def i0e_factor(t: mpmath.mpf) -> mpmath.mpf:
    """e^-z I0(z) sqrt(1 + z)."""
    z = z_of(t, 4)
    return mpmath.exp(-z) * mpmath.besseli(0, z) * mpmath.sqrt(1 + z)


def i1e_factor(t: mpmath.mpf) -> mpmath.mpf:
    """e^-z I1(z) (1 + z)^(3/2) / z."""
    z = z_of(t, 4)
    ratio = mpmath.mpf(1) / 2 if z == 0 else mpmath.besseli(1, z) / z
    return mpmath.exp(-z) * ratio * (1 + z) ** mpmath.mpf(1.5)


FACTORS: dict[str, tuple[Callable, int]] = {
    "ERFC": (erfc_factor, 12),
    "I0E": (i0e_factor, 17),
    "I1E": (i1e_factor, 17),
}


def coefficients(name: str) -> list[float]:
    """Powers of t, constant first."""
    factor, degree = FACTORS[name]
    nodes = [mpmath.cos(mpmath.pi * (2 * k + 1) / (2 * degree + 2)) for k in range(degree + 1)]
    values = [factor(t) for t in nodes]
    series = [
        mpmath.fsum(
            v * mpmath.cos(j * mpmath.pi * (2 * k + 1) / (2 * degree + 2))
            for k, v in enumerate(values)
        )
        * (2 if j else 1)
        / (degree + 1)
        for j in range(degree + 1)
    ]
    return [float(f"{float(c):.12g}") for c in chebyshev.cheb2poly(np.array(series, dtype=object))]


def worst(name: str, table: tuple[float, ...] | list[float]) -> float:
    """The largest relative error of a table over its range, at 500 points."""
    factor, _ = FACTORS[name]
    errors = [
        abs(mpmath.polyval([mpmath.mpf(c) for c in reversed(table)], t) / factor(t) - 1)
        for t in (mpmath.mpf(k) / 250 - 1 + mpmath.mpf(1) / 1000 for k in range(500))
    ]
    return float(max(errors))


if __name__ == "__main__":
    for name in FACTORS:
        table = coefficients(name)
        print(f"{name} = (\n" + "".join(f"    {c!r},\n" for c in table) + ")")
        print(f"# {name}: relative error {worst(name, table):.1e}")

"""Smoothness requirements of a space file, checked by evaluating the functions.

``finite_at_zero``          the value at 0.0 and at -0.0 is finite
``differentiable_at_zero``  so are the slopes there, and they are the derivative: the limit of the
                            difference quotients from both sides
``twice_differentiable``    value, first and second derivative are finite and without a jump at
                            every point of the domain, zero as above included

All as torch computes it, at zero in float64 and float32. Padding and zero biases put every network
at zero. Losses with second derivatives, as in physics-informed networks, need the last one: ELU's
second derivative jumps, ReLU's is zero except at the kink.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.activations.derivatives import Batch, Functions, batches
from bo_act.activations.expressions import Expression, canonical
from bo_act.errors import ExpressionError
from bo_act.specs import DomainSpec, SpaceSpec
from bo_act.specs.space import Requirement

REQUIREMENTS: tuple[Requirement, ...] = get_args(Requirement)

_COUNTED = 20_000  # functions up to which all are checked: half a minute
_DRAWN = 1_000  # sample of larger spaces: shares within two percent

_ZEROS = (0.0, -0.0)
_STEPS = (1e-3, 1e-6)  # of difference quotients
_AGREE = 1e-3  # relative: derivatives in float32 and float64, quotients and slopes

# The domain is split into intervals. In each, a cubic through every second of seven points must
# meet the other three; if not, the interval is split again. Smooth functions soon pass (the error
# falls with the fourth power of the width), a jump never does.
_INTERVALS = 63  # odd, so that zero is inside one
_PARTS = 4
_NARROWEST = 1e-6  # of the domain's width
_MEETS = 1e-4  # relative to the largest of the seven
_NOTHING = 1e-9  # anything smaller is rounding
_INSIDE = (
    np.array([[5, 15, -5, 1], [-1, 9, 9, -1], [1, -5, 15, 5]], dtype=np.float64) / 16
)  # cubic at 1/6, 3/6 and 5/6 of the width from its values at 0, 1/3, 2/3 and 1


def satisfied(
    functions: Functions,
    domain: DomainSpec,
    wanted: Collection[Requirement] = REQUIREMENTS,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Requirement, NDArray[np.bool_]]:
    """Tell which of N functions satisfy the requirements.

    Args:
        functions: by index; spellings for training.
        domain: where they must be twice differentiable.
        wanted: requirements.
        progress: called with (functions checked, functions in all).

    Returns:
        (N,) bool for each wanted requirement, in the order of ``REQUIREMENTS``.
    """
    chosen = [name for name in REQUIREMENTS if name in wanted]
    masks = {name: np.zeros(len(functions), dtype=bool) for name in chosen}
    if not chosen:
        return masks
    done = 0
    for batch in batches(functions):
        places = list(batch.indices)
        for name in chosen:
            masks[name][places] = _TESTS[name](batch, domain)
        done += len(batch)
        if progress:
            progress(done, len(functions))
    return masks


def unsatisfied(
    expression: Expression, domain: DomainSpec, wanted: Collection[Requirement]
) -> tuple[Requirement, ...]:
    """Return the wanted requirements that one function violates."""
    masks = satisfied(_Listed((expression,)), domain, wanted)
    return tuple(name for name, mask in masks.items() if not mask.all())


@dataclass(frozen=True)
class Count:
    """How many functions satisfy each requirement.

    Attributes:
        satisfying: by requirement.
        of: functions checked.
        drawn: whether these are a random sample.
    """

    satisfying: dict[Requirement, int]
    of: int
    drawn: bool


def count(
    functions: Functions, domain: DomainSpec, *, progress: Callable[[int, int], None] | None = None
) -> Count:
    """Count the functions that satisfy each requirement, in a sample of a large space."""
    total = len(functions)
    drawn = total > _COUNTED
    sample: Functions = functions
    if drawn:
        chosen = np.random.default_rng(0).choice(total, size=_DRAWN, replace=False)
        sample = _Listed(canonical(functions.expression(int(index))) for index in chosen)
    masks = satisfied(sample, domain, progress=progress)
    return Count({name: int(mask.sum()) for name, mask in masks.items()}, len(sample), drawn)


def left_out(expression: Expression, spec: SpaceSpec) -> ExpressionError:
    """Return an error that says why a function is not in a space."""
    missing = " or ".join(unsatisfied(expression, spec.domain, spec.require))
    return ExpressionError(
        f"{expression} is not in the space {spec.name!r}, which requires "
        f"{' and '.join(spec.require)}: it is not {missing or 'so'}"
    )


class _Listed(tuple[Expression, ...]):
    """Expressions by place, as ``batches`` takes them."""

    def expression(self, index: int) -> Expression:
        return self[index]


# --- at zero --------------------------------------------------------------------------------


def _finite_at_zero(batch: Batch, domain: DomainSpec) -> NDArray[np.bool_]:  # noqa: ARG001
    return _finite(at for dtype in _DTYPES for at in _at_zero(batch, dtype, 0))


def _differentiable_at_zero(batch: Batch, domain: DomainSpec) -> NDArray[np.bool_]:  # noqa: ARG001
    values, slopes = _at_zero(batch, torch.float64, 1)
    narrow = _at_zero(batch, torch.float32, 1)
    good = _finite([values, slopes, *narrow])
    value, slope = values[:, :1], slopes[:, :1]
    # Both zeros, in both dtypes: one value, one slope.
    good &= _near(values, value) & _near(narrow[0], value)
    good &= _near(slopes, slope) & _near(narrow[1], slope)
    near, far = (_quotient_error(batch, value, slope, step) for step in _STEPS[::-1])
    # The error falls at least with the root of the step, though rounding may limit it.
    bound = torch.maximum(0.1 * far, 1e-6 * (1 + slope.abs() + value.abs())[:, 0])
    right: NDArray[np.bool_] = (torch.isfinite(near) & (near <= bound)).numpy()
    return good & right


_DTYPES = (torch.float64, torch.float32)


def _at_zero(batch: Batch, dtype: torch.dtype, order: int) -> tuple[Tensor, ...]:
    derivatives = batch.derivatives(torch.tensor(_ZEROS, dtype=dtype, device="cpu"), order)
    return tuple(derivative.double() for derivative in derivatives)


def _quotient_error(batch: Batch, value: Tensor, slope: Tensor, step: float) -> Tensor:
    """Return the larger deviation of the two difference quotients from the slope."""
    sides = torch.tensor([step, -step], dtype=torch.float64, device="cpu")
    (values,) = batch.derivatives(sides, 0)
    return (((values - value) / sides) - slope).abs().nan_to_num(torch.inf, torch.inf).amax(dim=1)


def _near(a: Tensor, b: Tensor) -> NDArray[np.bool_]:
    near: Tensor = ((a - b).abs() <= _AGREE * (b.abs() + 0.1)).all(dim=1)
    return near.numpy()


def _finite(tensors: Iterable[Tensor]) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = np.array(True)
    for tensor in tensors:
        good = good & torch.isfinite(tensor).all(dim=1).numpy()
    return good


# --- in the domain --------------------------------------------------------------------------


def _twice_differentiable(batch: Batch, domain: DomainSpec) -> NDArray[np.bool_]:
    good = np.ones(len(batch), dtype=bool)
    if domain.low <= 0.0 <= domain.high:
        good = _differentiable_at_zero(batch, domain)
        (*_, near) = batch.derivatives(
            torch.tensor([-1e-6, 1e-6], dtype=torch.float64, device="cpu"), 2
        )
        for dtype in _DTYPES:
            (*_, curvature) = _at_zero(batch, dtype, 2)
            good &= _finite([curvature]) & _near(curvature, near.mean(dim=1, keepdim=True))
    width = (domain.high - domain.low) / _INTERVALS
    lows = domain.low + width * np.arange(_INTERVALS)
    rows = np.flatnonzero(good).repeat(_INTERVALS)
    starts = np.tile(lows, int(good.sum()))
    narrowest = _NARROWEST * (domain.high - domain.low)
    while len(rows):
        smooth, finite = _smooth_and_finite(batch, rows, starts, width)
        bad = ~finite | (~smooth & (width < narrowest))
        good[rows[bad]] = False
        again = ~smooth & good[rows]
        width /= _PARTS
        starts = (starts[again][:, np.newaxis] + width * np.arange(_PARTS)).ravel()
        rows = rows[again].repeat(_PARTS)
    return good


def _smooth_and_finite(
    batch: Batch, rows: NDArray[np.int64], starts: NDArray[np.float64], width: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether each interval is smooth, and whether it is finite."""
    smooth = np.empty(len(rows), dtype=bool)
    finite = np.empty(len(rows), dtype=bool)
    points = width * np.arange(7) / 6
    for first in range(0, len(rows), _AT_ONCE):
        chunk = slice(first, first + _AT_ONCE)
        places = starts[chunk][:, np.newaxis] + points
        places[np.abs(places) < 1e-6 * width] = 0.0  # kernels are noisy next to zero
        x = torch.from_numpy(places)
        derivatives = [
            derivative.numpy() for derivative in batch.rows(rows[chunk].tolist()).derivatives(x, 2)
        ]
        finite[chunk] = np.isfinite(derivatives).all(axis=(0, 2))
        smooth[chunk] = np.all([_meets(derivative) for derivative in derivatives], axis=0)
    return smooth, finite


_AT_ONCE = 8_192


def _meets(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell for each row of seven whether the cubic through every second point meets the others."""
    with np.errstate(all="ignore"):
        error = np.abs(numbers[:, ::2] @ _INSIDE.T - numbers[:, 1::2]).max(axis=1)
        return np.asarray(error <= _MEETS * np.abs(numbers).max(axis=1) + _NOTHING)


_TESTS: dict[Requirement, Callable[[Batch, DomainSpec], NDArray[np.bool_]]] = {
    "finite_at_zero": _finite_at_zero,
    "differentiable_at_zero": _differentiable_at_zero,
    "twice_differentiable": _twice_differentiable,
}

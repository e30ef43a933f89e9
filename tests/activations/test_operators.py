"""Every operator against its definition, in 50 digits."""

from __future__ import annotations

import math
from collections import Counter

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from operator_truth import BINARY_TRUTH, DIGITS, NARY_TRUTH, UNARY_TRUTH

from bo_act.activations.module import Activation
from bo_act.activations.operators import OPERATORS, of_kind

# 0, both sides of every kink, the middle, the tails; none is special in binary but the whole ones.
POINTS = sorted(
    {s * p + 0.0 for s in (-1.0, 1.0) for p in (0.0, 1e-8, 1e-3, 0.3, 1.0, 1.7, 2.5, 2.6, 5.0, 9.1)}
    | set(np.linspace(-30, 30, 41).tolist())
)
# Relative and absolute: sums like 1 + erf(x) cancel.
TOLERANCE = {torch.float64: (2e-13, 1e-15), torch.float32: (2e-6, 1e-6)}
EPSILON = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(DIGITS):
        yield


def exact(value: float) -> mpf:
    return mpf(value)


def close(got: float, truth: mpf, dtype: torch.dtype) -> bool:
    if mp.isnan(truth):
        return math.isnan(got)
    if abs(truth) > torch.finfo(dtype).max:
        return got == math.copysign(math.inf, truth)
    relative, absolute = TOLERANCE[dtype]
    return bool(abs(exact(got) - truth) <= relative * abs(truth) + absolute)


def test_the_table_has_31_unary_7_binary_and_4_nary_operators():
    counts = Counter(operator.kind for operator in OPERATORS.values())
    assert counts == {"unary": 31, "binary": 7, "nary": 4}
    assert of_kind("unary") == tuple(UNARY_TRUTH)
    assert of_kind("binary") == tuple(BINARY_TRUTH)
    assert of_kind("nary") == tuple(NARY_TRUTH)
    assert all(name == operator.name for name, operator in OPERATORS.items())


def test_commutative_is_told_right():
    a, b = torch.tensor([0.3, 2.0]), torch.tensor([1.7, -0.4])
    for operator in OPERATORS.values():
        if operator.kind != "unary":
            forth, back = operator.function(a, b), operator.function(b, a)
            assert operator.commutative == torch.equal(forth, back), operator.name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", UNARY_TRUTH)
def test_unary_values(name, dtype):
    x = torch.tensor(POINTS, dtype=dtype)
    y = OPERATORS[name].function(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    for point, got in zip(x.tolist(), y.tolist(), strict=True):
        truth = UNARY_TRUTH[name](exact(point))
        assert close(got, truth, dtype), (point, got, mp.nstr(truth, 20))


PAIRS = [
    (a, b)
    for a in (-30.0, -2.0, -0.7, 0.0, 0.4, 1.0, 3.3, 30.0)
    for b in (-30.0, -3.0, -1.5, 0.0, 0.25, 1.0, 2.0, 7.9)
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BINARY_TRUTH)
def test_binary_values(name, dtype):
    a, b = torch.tensor(PAIRS, dtype=dtype).unbind(1)
    y = OPERATORS[name].function(a, b)
    assert y.dtype == dtype
    for first, second, got in zip(a.tolist(), b.tolist(), y.tolist(), strict=True):
        truth = BINARY_TRUTH[name](exact(first), exact(second))
        assert close(got, truth, dtype), (first, second, got, mp.nstr(truth, 20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", NARY_TRUTH)
def test_nary_values(name, count, dtype):
    generator = torch.Generator().manual_seed(count)
    columns = (60 * torch.rand(count, 50, generator=generator, dtype=torch.float64) - 30).to(dtype)
    y = OPERATORS[name].function(*columns)
    for place, got in enumerate(y.tolist()):
        arguments = [exact(value) for value in columns[:, place].tolist()]
        truth = NARY_TRUTH[name](*arguments)
        # A sum that cancels is exact to rounding of its parts.
        scale = torch.finfo(dtype).eps * sum(map(abs, arguments)) if name == "sum_n" else 0
        assert close(got, truth, dtype) or abs(exact(got) - truth) <= count * scale


@pytest.mark.parametrize("name", UNARY_TRUTH)
def test_unary_gradients_away_from_kinks(name):
    points = [p for p in POINTS if abs(p) > 0.01 and abs(abs(p) - 2.5) > 0.01]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    y = OPERATORS[name].function(x)
    slopes = torch.zeros_like(x)
    if y.requires_grad:
        (slopes,) = torch.autograd.grad(y.sum(), x)
    for point, got in zip(points, slopes.tolist(), strict=True):
        truth = mp.diff(UNARY_TRUTH[name], exact(point))
        bound = mpf("1e-11") * abs(truth) + mpf("1e-13")
        assert abs(exact(got) - truth) <= bound, (point, got, mp.nstr(truth, 20))


@pytest.mark.parametrize("name", [name for name in BINARY_TRUTH if name not in ("max", "min")])
def test_binary_gradients(name):
    pairs = [(a, b) for a in (0.3, 1.0, 4.2) for b in (-2.5, 0.6, 3.1)]
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    found = torch.autograd.grad(OPERATORS[name].function(a, b).sum(), (a, b))
    for place, pair in enumerate(pairs):
        for argument in (0, 1):
            order = (1, 0) if argument == 0 else (0, 1)
            truth = mp.diff(BINARY_TRUTH[name], tuple(map(exact, pair)), order)
            assert float(found[argument][place]) == pytest.approx(float(truth), rel=1e-11)


FAR = [-1e4, -1000.0, -100.0, -90.0, -50.0, 50.0, 90.0, 100.0, 1000.0, 1e4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", UNARY_TRUTH)
def test_gradients_are_finite_wherever_the_value_is(name, dtype):
    x = torch.tensor(FAR, dtype=dtype, requires_grad=True)
    y = OPERATORS[name].function(x)
    if not y.requires_grad:
        return
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(slope)[torch.isfinite(y)].all(), (y, slope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "left", "right"),
    [("elish", 0, 1), ("mish", 0, 1), ("softplus", 0, 1), ("log_sigmoid", 1, 0), ("swish", 0, 1)],
)
def test_gradients_reach_their_limits(name, left, right, dtype):
    x = torch.tensor(FAR, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(OPERATORS[name].function(x).sum(), x)
    limits = [left] * 5 + [right] * 5
    assert slope.tolist() == pytest.approx(limits, abs=1e-15)


def test_pow_follows_ieee():
    nan, inf = math.nan, math.inf
    a = torch.tensor([nan, 1.0, 0.0, inf, 2.0, -2.0])
    b = torch.tensor([0.0, nan, 0.0, 0.0, -inf, 3.0])
    assert torch.pow(a, b).equal(OPERATORS["pow"].function(a, b))
    assert OPERATORS["pow"].function(a, b).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, -8.0]


@pytest.mark.parametrize("dtype", list(EPSILON), ids=str)
@pytest.mark.parametrize("name", UNARY_TRUTH)
def test_half_precision_is_right_to_its_last_bit_or_two(name, dtype):
    x = torch.tensor(POINTS).to(dtype) + 0.0
    y = Activation(f"{name}(x)")(x)
    assert y.dtype == dtype
    limits = torch.finfo(dtype)
    for point, got in zip(x.tolist(), y.tolist(), strict=True):
        truth = UNARY_TRUTH[name](exact(point))
        if abs(truth) > limits.max:
            assert got == math.copysign(math.inf, truth)
        else:
            bound = EPSILON[dtype] * abs(truth) + limits.smallest_normal + 2e-6
            assert abs(exact(got) - truth) <= bound, (point, got)

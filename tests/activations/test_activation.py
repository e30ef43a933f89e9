"""The torch module of an expression, its moments and its normalized form."""

from __future__ import annotations

import copy
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import expressions
from test_expressions import naive
from torch import nn

from bo_act.activations import evaluation
from bo_act.activations.evaluation import evaluate, moments
from bo_act.activations.expressions import parse
from bo_act.activations.module import Activation
from bo_act.activations.operators import OPERATORS, Operator
from bo_act.errors import ExpressionError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRID = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)


@settings(max_examples=200)
@given(expressions(max_leaves=8))
def test_equals_plain_recursion(expression):
    expected = naive(expression, GRID)
    for got in (Activation(expression)(GRID), evaluate(expression, GRID)):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_equal_subtrees_are_computed_once(monkeypatch):
    calls = []
    real = OPERATORS["exp"].function

    def counting(x):
        calls.append(1)
        return real(x)

    monkeypatch.setitem(OPERATORS, "exp", Operator("exp", "unary", counting, "e^x"))
    text = "add(mul(exp(x),tanh(exp(x))),exp(exp(x)))"
    assert torch.equal(Activation(text)(GRID), naive(parse(text), GRID))
    calls.clear()
    Activation(text)(GRID)
    assert len(calls) == 2  # exp(x) and exp(exp(x))
    calls.clear()
    evaluate(parse(text), GRID)
    assert len(calls) == 2


@settings(max_examples=50)
@given(expressions())
def test_any_dtype_and_shape_comes_back(expression):
    activation = Activation(expression)
    for dtype in DTYPES:
        for shape in ((), (0,), (2, 3, 1)):
            y = activation(torch.ones(shape, dtype=dtype))
            assert y.dtype == dtype
            assert y.shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_wider(dtype):
    # exp(exp(3)) = 5e8 and cosh(12)² = 6.6e9 leave float16; the values do not.
    x = torch.tensor([0.5, 3.0, 12.0], dtype=dtype)
    y = Activation("reciprocal(square(cosh(x)))")(x)
    expected = (1 / torch.cosh(x.double()).square()).to(dtype)
    torch.testing.assert_close(y, expected)
    assert (Activation("arcsinh(exp(exp(x)))")(torch.tensor([3.0], dtype=dtype)) > 20).all()


def network(activation: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 4))


def test_autocast():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    net = network(Activation("mul(sigmoid(x),erf(x))"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net[0](x)
        assert hidden.dtype == torch.bfloat16
        assert net[1](hidden).dtype == torch.bfloat16
        y = net(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(x), rtol=0.05, atol=0.02)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_equals_eager():
    torch.compiler.reset()
    activation = Activation("max(div(x,cosh(x)),mish(negative(x)))", normalize=True)
    x = torch.linspace(-3, 3, 64)
    x[0], x[1] = 0.0, -0.0
    torch.testing.assert_close(torch.compile(activation, fullgraph=True)(x), activation(x))


def test_traced_gradient_equals_eager():
    torch.compiler.reset()
    activation = Activation("max(div(x,cosh(x)),mish(negative(x)))", normalize=True)
    traced = torch.compile(activation, fullgraph=True, backend="aot_eager")
    x = torch.linspace(-3, 3, 64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    (traced_slope,) = torch.autograd.grad(traced(x).sum(), x)
    torch.testing.assert_close(traced_slope, slope)


def test_repr():
    assert repr(Activation(" mul( x ,erf(x))")) == "Activation(mul(x,erf(x)))"
    assert repr(Activation("relu(x)", normalize=True)) == "Activation(relu(x), normalize=True)"
    assert "(1): Activation(relu(x))" in repr(network(Activation("relu(x)")))


@pytest.mark.parametrize("normalize", [False, True])
def test_copies(normalize):
    activation = Activation("mul(x,hard_sigmoid(softplus(x)))", normalize=normalize).eval()
    net = nn.Sequential(activation)
    for other in (
        copy.deepcopy(activation),
        copy.copy(activation),
        pickle.loads(pickle.dumps(activation)),
        copy.deepcopy(net)[0],
        pickle.loads(pickle.dumps(net))[0],
    ):
        assert other is not activation
        assert repr(other) == repr(activation)
        assert torch.equal(other(GRID), activation(GRID))
    assert not copy.deepcopy(activation).training
    assert activation.state_dict() == {}
    assert list(activation.parameters()) == []
    other = copy.deepcopy(activation)
    other.train()
    assert not activation.training


def test_what_is_no_expression_is_refused():
    with pytest.raises(ExpressionError, match="did you mean 'relu'"):
        Activation("rellu(x)")


@pytest.mark.parametrize("text", ["tanh(x)", "mul(x,sigmoid(x))", "max(relu(x),cosh(elu(x)))"])
def test_gradient_flows(text):
    x = GRID.clone().requires_grad_()
    assert torch.autograd.gradcheck(Activation(text), (x[torch.arange(33) != 16],))
    half = torch.randn(9, dtype=torch.float16, requires_grad=True)
    Activation(text)(half).sum().backward()
    assert half.grad.dtype == torch.float16
    assert (half.grad != 0).any()


# --- moments and normalize ------------------------------------------------------------------

CLOSED = {
    "x": (0.0, 1.0),
    "relu(x)": (1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)),
    "exp(x)": (math.exp(0.5), math.exp(2) - math.exp(1)),
    "square(x)": (1.0, 2.0),
    "abs(x)": (math.sqrt(2 / math.pi), 1 - 2 / math.pi),
    "negative(square(square(x)))": (-3.0, 96.0),
    "cosh(x)": (math.exp(0.5), (math.exp(2) + 1) / 2 - math.exp(1)),
    "sigmoid(negative(sinh(x)))": (0.5, None),
    "tanh(x)": (0.0, None),
    "one(x)": (1.0, 0.0),
    "erfc(x)": (1.0, 2 / math.pi * math.asin(2 / 3)),
}


@pytest.mark.parametrize("text", CLOSED)
def test_moments_in_closed_form(text):
    mean, variance = moments(parse(text))
    expected_mean, expected_variance = CLOSED[text]
    assert mean == pytest.approx(expected_mean, abs=1e-6, rel=1e-6)
    if expected_variance is not None:
        assert variance == pytest.approx(expected_variance, abs=1e-6, rel=1e-5)


def gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Points and weights under N(0, 1): Gauss-Legendre on unit panels, kinks at their ends."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    centres = np.arange(-11.75, 12, 0.5)
    points = (centres[:, None] + 0.25 * nodes).ravel()
    density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return points, np.tile(0.25 * weights, len(centres)) * density


@pytest.mark.parametrize(
    "text", ["relu(x)", "exp(x)", "swish(x)", "mul(sigmoid(x),erf(x))", "hard_sigmoid(x)", "elu(x)"]
)
def test_normalized_has_mean_0_and_variance_1(text):
    points, weights = gauss_legendre()
    y = Activation(text, normalize=True)(torch.from_numpy(points)).numpy()
    mean = weights @ y
    assert mean == pytest.approx(0.0, abs=1e-5)
    assert weights @ (y - mean) ** 2 == pytest.approx(1.0, abs=1e-5)
    plain = Activation(text)(torch.from_numpy(points)).numpy()
    slope, shift = np.polyfit(plain[400:500], y[400:500], 1)
    np.testing.assert_allclose(y, slope * plain + shift, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "zero(x)",
        "one(x)",
        "sub(exp(x),exp(x))",
        "add(tanh(x),negative(tanh(x)))",
        "exp(one(x))",
        "reciprocal(x)",  # the variance's integral has a pole
        "div(x,square(x))",
        "exp(square(x))",  # grows faster than the density falls
        "cosh(square(x))",
        "pow(x,tanh(x))",  # not a number below 0
        "sub(reciprocal(zero(x)),x)",  # infinite
        "div(zero(x),zero(x))",
    ],
)
def test_normalize_refuses_what_has_no_scale(text):
    with pytest.raises(ExpressionError, match="cannot normalize"):
        Activation(text, normalize=True)
    Activation(text)


def test_a_hole_at_zero_does_not_matter():
    # tanh(x)/x is not a number at 0 alone.
    y = Activation("div(tanh(x),x)", normalize=True)(GRID[:16])
    assert torch.isfinite(y).all()


def test_the_grid_of_moments_is_built_once():
    evaluation._normal_grid.cache_clear()
    moments(parse("relu(x)"))
    moments(parse("tanh(x)"))
    assert evaluation._normal_grid.cache_info().misses == 2


def test_shapes_alone_can_be_followed():
    shape = (2, 3)
    assert Activation("mul(sigmoid(x),erf(x))")(torch.empty(shape, device="meta")).shape == shape


# --- a module, and what makes modules ---------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"fused": True}])
def test_without_an_argument_it_gives_a_fresh_module(options):
    activation = Activation("mul(x,sigmoid(x))", **options).eval()
    called = []
    activation.register_forward_hook(lambda *_: called.append(1))
    for fresh in (activation(), activation("early"), activation()()):
        assert fresh is not activation
        assert repr(fresh) == repr(activation)
        torch.testing.assert_close(fresh(GRID), activation(GRID))
        assert not fresh._forward_hooks
    assert len(called) == 3  # one for each evaluation


def test_it_goes_where_classes_and_modules_of_pytorch_go():
    from torchvision.ops import Conv2dNormActivation

    for activation in (nn.ReLU, Activation("relu(x)")):
        assert isinstance(activation(), nn.Module)
    block = Conv2dNormActivation(1, 2, activation_layer=Activation("tanh(x)"))
    assert repr(block[-1]) == "Activation(tanh(x))"
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=Activation("tanh(x)"))
    assert layer(torch.zeros(3, 1, 4)).shape == (3, 1, 4)
    network = nn.Sequential(nn.Linear(3, 3), Activation("tanh(x)"))
    x = torch.randn(2, 3)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))

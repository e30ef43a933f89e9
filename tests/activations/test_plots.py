"""Formulas and graphs: what is drawn is the function, and nothing gets out of its box."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import special
from strategies import expressions

from bo_act import Activation, load_space
from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.mathml import mathml
from bo_act.activations.operators import OPERATORS
from bo_act.activations.plots import graph, path, sample, windows
from bo_act.html import Markup, box, table

# --- formulas -------------------------------------------------------------------------------


def on_arrays(function):
    return lambda *arguments: function(*map(torch.as_tensor, arguments)).numpy()


_FUNCTIONS = {name: on_arrays(operator.function) for name, operator in OPERATORS.items()}
_FUNCTIONS |= {"\u03c3": _FUNCTIONS["sigmoid"], "hard\u03c3": _FUNCTIONS["hard_sigmoid"]}
_FUNCTIONS |= {"ReLU": _FUNCTIONS["relu"], "ELU": _FUNCTIONS["elu"], "SELU": _FUNCTIONS["selu"]}
_FUNCTIONS |= {"GELU": _FUNCTIONS["gelu"], "LeakyReLU": _FUNCTIONS["leakyrelu"]}
_FUNCTIONS |= {"ELiSH": _FUNCTIONS["elish"], "I0e": special.i0e, "I1e": special.i1e}
_FUNCTIONS |= {"log": np.log, "abs": np.abs, "e": np.e, "number": np.float64}
_FUNCTIONS |= {name: _FUNCTIONS[f"{name}_n"] for name in ("max", "min")}


def python(node: ET.Element) -> str:
    """Read MathML as a person does: precedence comes from Python's own, not from our printer."""
    kind = node.tag.rpartition("}")[2]
    parts = [python(child) for child in node]
    if kind == "mn":
        return f"number({node.text})"  # Python's own would not divide by zero
    if kind in ("mi", "mo"):
        return {"\u2212": "-", "\u22c5": "*"}.get(node.text, node.text)
    if kind == "msup":
        return f"{parts[0]}**({parts[1]})"
    if kind == "msubsup":
        return "".join(node.itertext())
    if kind == "mfrac":
        return f"(({parts[0]})/({parts[1]}))"
    text, bars, apply = "", 0, False
    for part in parts:
        if part == "|":
            bars += 1
            text += "abs(" if bars % 2 else ")"
        elif part == "\u2061":
            apply = True
        else:
            text += f"({part})" if apply and not part.startswith("(") else part
            apply = False
    return text


def read_value(expression: Expression, x: np.ndarray) -> np.ndarray:
    names = {re.sub(r"\W", "", name) or name: f for name, f in _FUNCTIONS.items()}
    return np.asarray(eval(python(ET.fromstring(mathml(expression))), {**names, "x": x}))


def agrees(expression: Expression) -> None:
    x = np.linspace(-3.1, 2.7, 23)
    with np.errstate(all="ignore"):
        shown = np.broadcast_to(read_value(expression, x), x.shape)
    real = evaluate(expression, torch.from_numpy(x)).expand(len(x)).numpy()
    there = np.isfinite(shown) & np.isfinite(real) & (np.abs(real) < 1e8) & (np.abs(real) > 1e-9)
    np.testing.assert_allclose(shown[there], real[there], rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "div(zero(x),zero(x))",
        "sub(x,sub(tanh(x),x))",
        "mul(add(x,one(x)),negative(x))",
        "pow(negative(x),square(add(x,x)))",
        "square(square(x))",
        "square(pow(abs(x),x))",
        "pow(pow(abs(x),x),x)",
        "pow(exp(x),x)",
        "reciprocal(div(x,add(x,x)))",
        "square(div(x,tanh(x)))",
        "negative(add(x,tanh(x)))",
        "negative(negative(x))",
        "log_sigmoid(mul(x,expm1(x)))",
        "prod_n(sigmoid(x),negative(x),hard_sigmoid(x))",
        "max_n(x,tanh(x),expm1(x))",
        "abs(sub(abs(x),bessel_i1e(x)))",
        "square(log_sigmoid(x))",
    ],
)
def test_a_formula_reads_as_the_function(text):
    agrees(parse(text))


@settings(max_examples=150)
@given(expressions())
def test_any_formula_reads_as_the_function(expression):
    agrees(expression)


def test_every_operator_has_a_formula():
    for name, operator in OPERATORS.items():
        agrees(Expression(name, (parse("add(x,one(x))"),) * (1 if operator.kind == "unary" else 2)))


# --- graphs ---------------------------------------------------------------------------------


def test_a_graph_goes_through_the_functions_values():
    drawn = ET.fromstring(graph("tanh(x)", width=200, height=100))
    (curve,) = [p for p in drawn if p.get("class") == "curve"]
    points = np.array(re.findall(r"[ML]([-\d.]+) ([-\d.]+)", curve.get("d")), dtype=float)
    x = points[:, 0] / 200 * 10 - 5
    # The window is [-1, 1] with a margin of 6% of its height.
    y = (1 + 0.12) - points[:, 1] / 100 * (2 + 0.24)
    low, high = np.tanh([-5, 5])
    np.testing.assert_allclose(y, np.tanh(x), atol=0.02)
    assert (low, high) == pytest.approx((-1, 1), abs=1e-3)


def test_a_pole_and_what_is_not_finite_interrupt_a_curve():
    values = sample([parse("reciprocal(x)"), parse("log_sigmoid(x)")], 100)
    (low, _), (high, _) = windows(values)
    assert path(values[0], low, high, 100, 50).count("M") == 2
    row = np.array([0.0, np.nan, 1.0, 2.0, np.inf, 0.5])
    assert path(row, 0.0, 2.0, 50, 50).count("M") == 3


def test_windows_are_finite_whatever_the_values():
    values = np.array([[np.nan] * 3, [np.inf, -np.inf, 0.0], [7.0] * 3, [1e30, -1e30, 0.0]])
    low, high = windows(values)
    assert np.isfinite([low, high]).all()
    assert (high - low >= 0.5 - 1e-12).all()
    assert (high - low <= 12).all()


# --- notebooks ------------------------------------------------------------------------------


def well_formed(html: str) -> ET.Element:
    return ET.fromstring(f"<body>{html}</body>")


def test_activations_and_spaces_show_themselves():
    shown = Activation("sub(relu(x),erfc(x))", normalize=True)._repr_html_()
    well_formed(shown)
    for part in ("<svg", "<math", "sub(relu(x),erfc(x))", "mean", "mean 0, variance 1"):
        assert part in shown
    space = load_space("act_bench")._repr_html_()
    assert len(well_formed(space).findall(".//svg")) == len(load_space("act_bench").baselines)
    assert "5,103" in space
    assert len(space) < 60_000


def test_texts_are_escaped_and_markup_is_not():
    bad = "<script>alert('x')</script>"
    shown = box(bad, bad, table([bad], [[bad], [Markup("<b>1</b>")]], numbers=frozenset({0})))
    assert "<script" not in shown
    assert "<b>1</b>" in shown
    well_formed(shown)

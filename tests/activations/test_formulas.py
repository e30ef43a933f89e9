"""Formulas in plain text, LaTeX and MathML: they read as the function."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import special
from strategies import expressions

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.formulas import latex, mathml, plain
from bo_act.activations.operators import OPERATORS


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


@pytest.mark.parametrize(
    ("text", "in_plain", "in_latex"),
    [
        ("sub(x,sub(x,tanh(x)))", "x - (x - tanh(x))", r"x - \left(x - \tanh\left(x\right)\right)"),
        ("mul(x,add(x,erf(x)))", "x * (x + erf(x))", None),
        ("div(x,mul(x,exp(x)))", "x / (x * exp(x))", r"\frac{x}{x \, e^{x}}"),
        ("pow(negative(x),square(x))", "(-x)^(x^2)", r"\left(-x\right)^{x^{2}}"),
        ("square(pow(x,abs(x)))", "(x^|x|)^2", r"\left(x^{\left|x\right|}\right)^{2}"),
        ("add(x,negative(x))", "x + (-x)", r"x + \left(-x\right)"),
        ("negative(add(x,exp(x)))", "-(x + exp(x))", r"-\left(x + e^{x}\right)"),
        ("reciprocal(expm1(x))", "1 / expm1(x)", r"\frac{1}{e^{x} - 1}"),
        ("max_n(x,zero(x),bessel_i0e(x))", "max(x, 0, bessel_i0e(x))", None),
    ],
)
def test_formulas_for_people(text, in_plain, in_latex):
    assert plain(parse(text)) == in_plain
    if in_latex is not None:
        assert latex(parse(text)) == in_latex


@pytest.mark.parametrize(
    ("write", "digest"),
    [
        (plain, "e0d424dbd9c7d35e"),
        (latex, "722dd3c50210d4dd"),
        (mathml, "2bc5dea52bd0b68b"),
    ],
)
def test_all_formulas_of_act_bench_are_what_they_were(act_bench_catalogue, write, digest):
    """If a notation changes on purpose, look at some formulas and put the new digest here."""
    found = hashlib.sha256()
    for index in range(len(act_bench_catalogue)):
        found.update(f"{write(act_bench_catalogue.expression(index))}\n".encode())
    assert found.hexdigest()[:16] == digest

"""Reading, printing and simplifying expressions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import BINARY, NARY, UNARY, expressions, shuffled
from torch import Tensor

from bo_act.activations.expressions import MAX_DEPTH, MAX_LENGTH, Expression, X, canonical, parse
from bo_act.activations.names import own_names
from bo_act.activations.operators import OPERATORS
from bo_act.errors import ExpressionError


def naive(expression: Expression, x: Tensor, *, signed_zero: bool = True) -> Tensor:
    """Evaluate by plain recursion, on request with one zero: -0.0 + 0.0 is 0.0."""
    if not expression.arguments:
        return x if signed_zero else x + 0.0
    arguments = [naive(a, x, signed_zero=signed_zero) for a in expression.arguments]
    value = OPERATORS[expression.name].function(*arguments)
    return value if signed_zero else value + 0.0


# --- reading and printing -------------------------------------------------------------------


@given(expressions())
def test_round_trip(expression):
    assert parse(str(expression)) == expression


@given(expressions(), st.data())
def test_spaces_between_tokens_do_not_matter(expression, data):
    text = str(expression)
    for mark in "(),":
        gap = data.draw(st.sampled_from(["", " ", "\n\t", "   "]))
        text = text.replace(mark, f"{gap}{mark}{gap}")
    assert parse(f" {text}\n") == expression


def test_depth_and_nodes():
    expression = parse("max(relu(x),cosh(elu(x)))")
    assert expression.depth == 3
    assert [node.name for node in expression.nodes()] == ["x", "relu", "x", "elu", "cosh", "max"]
    assert X.depth == 0


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("relu(x", 6, "expected ',' or ')' in relu(...), got the end of the text"),
        ("add(relu(x),exp(x)", 18, "in add(...)"),
        ("add(x,", 6, "expected 'x' or an operator, but the text ends"),
        ("max", 3, "expected '(' after 'max', got the end of the text"),
        ("relu x", 5, "expected '(' after 'relu', got 'x'"),
        ("relu(x x)", 7, "expected ',' or ')' in relu(...), got 'x'"),
        ("add(x,sigmiod(x))", 6, "unknown operator 'sigmiod' (did you mean 'sigmoid'?)"),
        ("qqqqq(x)", 0, "unknown operator 'qqqqq' (at"),
        ("y", 0, "unknown operator 'y'"),
        ("exp(relu(x,x))", 4, "relu takes 1 argument, got 2"),
        ("add(x)", 0, "add takes 2 arguments, got 1"),
        (" add(x,x,x)", 1, "add takes 2 arguments, got 3"),
        ("max_n(x)", 0, "max_n takes 2 or more arguments, got 1"),
        ("relu(x)) ", 7, "expected the end of the text, got ')'"),
        ("relu(x) exp(x)", 8, "expected the end of the text, got 'exp'"),
        ("x(x)", 1, "expected the end of the text, got '('"),
        ("", 0, "but the text ends"),
        ("  \n", 3, "but the text ends"),
        ("relu()", 5, "expected 'x' or an operator, got ')'"),
        (",", 0, "expected 'x' or an operator, got ','"),
        ("relu(x)+1", 7, "unexpected character '+'; write add(a,b) for a + b"),
        ("relu( 2)", 6, "unexpected character '2'; build numbers from zero(x)"),
        ("relu(X)", 5, "unknown operator 'X'; the input is written x"),
        ("relu(é)", 5, "unexpected character 'é'"),
    ],
)
def test_errors_say_where_and_what(text, position, message):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert caught.value.position == position
    assert caught.value.text == text
    assert message in str(caught.value)
    assert f"at position {position} of {text!r}" in str(caught.value)


def test_depth_is_bounded():
    def nested(depth: int) -> str:
        return "exp(" * depth + "x" + ")" * depth

    assert parse(nested(MAX_DEPTH)).depth == MAX_DEPTH
    with pytest.raises(ExpressionError, match=f"more than {MAX_DEPTH} operators") as caught:
        parse(nested(MAX_DEPTH + 1))
    assert caught.value.position == 4 * MAX_DEPTH


def test_length_is_bounded():
    def padded(length: int) -> str:
        return "x" + " " * (length - 1)

    assert parse(padded(MAX_LENGTH)) == X
    with pytest.raises(ExpressionError, match=f"{MAX_LENGTH + 1} characters"):
        parse(padded(MAX_LENGTH + 1))


@pytest.mark.parametrize("value", [None, 3, b"relu(x)", ["x"], X])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ExpressionError, match=f"got {type(value).__name__}"):
        parse(value)


PIECES = st.sampled_from([*OPERATORS, "x", "(", ")", ",", " ", "\x1c", "\x85", "é", "0", "_"])


@settings(max_examples=300)
@given(st.text() | st.lists(PIECES, max_size=30).map("".join))
@example("(" * 5000)
@example("exp(" * 2400)
@example("\x00")
@example("a" * 5000)
@example("add(" * 40 + "x" * 4000)
def test_any_text_is_an_expression_or_an_expression_error(text):
    told = ""
    try:
        read = str(parse(text))
        # A name alone is the operator of x.
        plain = own_names("".join(text.split()))
        assert read.replace("(x)", "") == plain.replace("(x)", "")
        assert str(parse(read)) == read
    except ExpressionError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 300


# --- the canonical form ---------------------------------------------------------------------

INF, NAN = math.inf, math.nan
POINTS = [0.0, -0.0, INF, -INF, NAN, 1e-310, -1e-40, 1e-5, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5]
POINTS += [7.3, -7.3, 33.0, -33.0, 88.8, -88.8, 710.0, -710.0, 1e20, -1e20, 3e38, -3e38]


def assert_equal_values(one: Expression, other: Expression, dtype: torch.dtype) -> None:
    x = torch.tensor(POINTS, dtype=torch.float64).to(dtype)
    a, b = (naive(e, x, signed_zero=False) for e in (one, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=300)
@given(expressions(max_arguments=2, max_leaves=8))
@example(parse("reciprocal(add(negative(x),zero(x)))"))
@example(parse("reciprocal(max(tanh(x),negative(x)))"))
@example(parse("pow(sub(zero(x),x),negative(one(x)))"))
@example(parse("div(one(x),min_n(relu(x),negative(x)))"))
def test_canonical_is_equal_in_value_everywhere(expression):
    for dtype in (torch.float32, torch.float64):
        assert_equal_values(expression, canonical(expression), dtype)


# Simplifications alone, on what they are about, so that they are met in every run.
PARTS = st.sampled_from(
    [parse(t) for t in ("x", "zero(x)", "one(x)", "exp(x)", "negative(x)", "reciprocal(x)")]
)
SIMPLE = st.recursive(
    PARTS,
    lambda inner: (
        st.builds(
            lambda name, a: Expression(name, (a,)),
            st.sampled_from(["identity", "negative", "abs", "relu", "square", "cosh", "zero"]),
            inner,
        )
        | st.builds(
            lambda name, a, b: Expression(name, (a, b)),
            st.sampled_from(["add", "sub", "mul", "div", "pow", "max", "min", "sum_n", "prod_n"]),
            inner,
            inner,
        )
    ),
    max_leaves=5,
)


@settings(max_examples=400)
@given(SIMPLE)
def test_simplifications_are_exact(expression):
    for dtype in (torch.float32, torch.float64):
        assert_equal_values(expression, canonical(expression), dtype)


@pytest.mark.parametrize("outer", UNARY + BINARY)
def test_every_pair_of_operators_is_simplified_exactly(outer):
    parts = [Expression(name, (X,)) for name in UNARY]
    for inner in parts:
        others = [()] if outer in UNARY else [(part,) for part in parts]
        for rest in others:
            expression = Expression(outer, (inner, *rest))
            if (short := canonical(expression)) != expression:
                assert_equal_values(expression, short, torch.float32)
                assert_equal_values(expression, short, torch.float64)


@given(st.sampled_from(["sum_n", "prod_n"]), st.permutations(UNARY).map(lambda some: some[:4]))
def test_long_sums_and_products_are_equal_up_to_rounding(name, operators):
    expression = Expression(name, tuple(Expression(operator, (X,)) for operator in operators))
    x = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)
    one, other = naive(expression, x), naive(canonical(expression), x)
    scale = sum(naive(a, x).abs() for a in expression.arguments)
    bound = 1e-14 * (scale if name == "sum_n" else one.abs())
    assert ((one - other).abs() <= bound).all()


@settings(max_examples=300)
@given(expressions() | SIMPLE)
def test_canonical_is_idempotent_and_never_longer(expression):
    short = canonical(expression)
    assert canonical(short) == short
    assert len(str(short)) <= len(str(expression))
    assert parse(str(short)) == short


@settings(max_examples=100)
@given(st.data())
def test_canonical_does_not_depend_on_the_order_of_commutative_arguments(data):
    expression = data.draw(expressions() | SIMPLE)
    other = data.draw(shuffled(expression))
    assert canonical(other) == canonical(expression)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "x"),
        ("identity(identity(x))", "x"),
        ("max(swish(x),relu(x))", "max(relu(x),swish(x))"),
        ("prod_n(sigmoid(x),hard_sigmoid(x),x)", "prod_n(x,sigmoid(x),hard_sigmoid(x))"),
        ("add(relu(x),zero(exp(x)))", "relu(x)"),
        ("sum_n(zero(x),tanh(x),zero(x))", "tanh(x)"),
        ("add(zero(x),zero(x))", "zero(x)"),
        ("mul(one(x),relu(x))", "relu(x)"),
        ("prod_n(one(x),relu(x),exp(x))", "prod_n(exp(x),relu(x))"),
        ("sub(relu(x),zero(x))", "relu(x)"),
        ("sub(zero(x),relu(x))", "negative(relu(x))"),
        ("sub(zero(x),negative(x))", "x"),
        ("div(relu(x),one(x))", "relu(x)"),
        ("div(one(x),relu(x))", "reciprocal(relu(x))"),
        ("pow(relu(x),one(x))", "relu(x)"),
        ("pow(exp(x),zero(x))", "one(x)"),
        ("pow(one(x),exp(x))", "one(x)"),
        ("max(relu(x),relu(x))", "relu(x)"),
        ("min_n(x,exp(x),x)", "min_n(x,exp(x))"),
        ("negative(negative(exp(x)))", "exp(x)"),
        ("abs(abs(x))", "abs(x)"),
        ("relu(relu(x))", "relu(x)"),
        ("square(negative(x))", "square(x)"),
        ("cosh(negative(x))", "cosh(x)"),
        ("abs(negative(exp(x)))", "abs(exp(x))"),
        ("one(reciprocal(x))", "one(x)"),
    ],
)
def test_simplified(text, expected):
    assert str(canonical(parse(text))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "mul(exp(x),zero(x))",  # inf · 0
        "sub(exp(x),exp(x))",  # inf - inf
        "div(exp(x),exp(x))",
        "div(zero(x),exp(x))",  # 0 / 0 where exp underflows
        "pow(zero(x),exp(x))",  # 0^0 there
        "sub(x,exp(x))",
        "sub(exp(x),x)",
        "pow(x,exp(x))",
        "add(x,x)",  # two terms stay two
        "reciprocal(reciprocal(x))",  # overflows below 1/max
        "tanh(tanh(x))",
        "tanh(negative(x))",
        "exp(negative(x))",
        "mul(x,negative(one(x)))",
    ],
)
def test_not_simplified(text):
    kept = str(canonical(parse(text)))
    parts = sorted(text.replace("(", ",").replace(")", ",").split(","))
    assert sorted(kept.replace("(", ",").replace(")", ",").split(",")) == parts


@pytest.mark.parametrize("name", NARY)
def test_nary_takes_many(name):
    text = f"{name}({','.join(['x', 'exp(x)'] * 10)})"
    assert len(parse(text).arguments) == 20

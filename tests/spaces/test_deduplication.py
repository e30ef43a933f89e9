"""Grouping without building expressions, against expression by expression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import space_specs

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import canonical, parse
from bo_act.activations.operators import of_kind
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.deduplication import fingerprints, grid, group
from bo_act.spaces.space import Space, load_space
from bo_act.spaces.stability import faults_of
from bo_act.specs import DomainSpec, SpaceSpec

MIXED = SpaceSpec(
    name="mixed",
    unary=("zero", "one", "identity", "negative", "abs", "reciprocal", "exp", "relu"),
    binary=("add", "sub", "pow", "max", "div"),
    nary=("sum_n", "prod_n", "min_n"),
    schemas=(
        "unary(unary(unary(x)))",
        "binary(unary(x),unary(x))",
        "nary(unary(x),x,unary(x))",
        "unary(div(unary(x),unary(x)))",
        "x",
    ),
    expressions=("gelu(x)", "mul(x,erf(x))", "sum_n(x,exp(x),tanh(x),abs(x))"),
)
CONSTANT = SpaceSpec(
    name="constant",
    unary=("zero", "one", "negative", "relu"),
    binary=("sub", "pow", "div", "mul", "min"),
    schemas=("binary(unary(unary(x)),unary(x))", "binary(binary(unary(x),unary(x)),x)"),
)


def oracle(space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, shortest spelling and finite by building and evaluating every expression."""
    x = grid(space.spec.domain)
    groups: dict[bytes, int] = {}
    group, finite = [], []
    shortest: dict[int, tuple[int, int]] = {}
    for number, expression in enumerate(space):
        values = evaluate(expression, x)
        cells = torch.round(torch.asinh(values) / space.spec.domain.tolerance)
        cells = torch.where(torch.isnan(cells), torch.nan, cells) + 0.0
        index = groups.setdefault(cells.numpy().tobytes(), len(groups))
        if index == len(finite):
            finite.append(bool(torch.isfinite(values).all()))
        group.append(index)
        length = (len(str(canonical(expression))), number)
        shortest[index] = min(length, shortest.get(index, length))
    return np.array(group), np.array([shortest[i][1] for i in range(len(finite))]), np.array(finite)


@settings(max_examples=50)
@given(space_specs(), st.sampled_from([20, 64]))
@example(MIXED, 1000)
@example(CONSTANT, 100)
def test_a_catalogue_is_the_oracles(spec, points):
    domain = spec.domain.model_copy(update={"points": points})
    space = Space(spec.model_copy(update={"domain": domain}))
    catalogue = Catalogue.build(space)
    groups, shortest, finite = oracle(space)
    np.testing.assert_array_equal(catalogue.group, groups)
    np.testing.assert_array_equal(catalogue.shortest, shortest)
    np.testing.assert_array_equal(catalogue.finite, finite)
    # Another one stands for the group where it is steadier, and only there.
    np.testing.assert_array_equal(catalogue.group[catalogue.representative], range(len(catalogue)))
    for index in range(len(catalogue)):
        one, other = (
            faults_of(canonical(space.expression(int(numbers[index]))))
            for numbers in (catalogue.shortest, catalogue.representative)
        )
        same = catalogue.shortest[index] == catalogue.representative[index]
        assert same or (finite[index] and other < one)
    # Also where it does not decide which spelling is the shortest.
    lengths = [len(str(canonical(expression))) for expression in space]
    assert group(space).lengths.tolist() == lengths


# --- keys -----------------------------------------------------------------------------------

DOMAIN = DomainSpec(points=100)


def key(values: torch.Tensor, domain: DomainSpec = DOMAIN) -> int:
    keys, _ = fingerprints(values.unsqueeze(0), domain)
    return int(keys[0])


@given(
    st.integers(0, 111),
    st.sampled_from([0.0, 1.0, -1.0, 1e-3, 1e9, 1e300, np.inf, -np.inf, np.nan]),
    st.sampled_from([0.0, 1.0, -1.0, 1e-3, 1e9, 1e300, np.inf, -np.inf, np.nan]),
)
def test_keys_differ_where_one_value_does(place, one, other):
    values = grid(DOMAIN)
    rows = values.repeat(2, 1)
    rows[0, place], rows[1, place] = one, other
    keys, finite = fingerprints(rows, DOMAIN)
    assert (keys[0] == keys[1]) == np.array_equal(one, other, equal_nan=True)
    assert finite.tolist() == [np.isfinite(one), np.isfinite(other)]


def test_what_keys_do_not_see():
    values = grid(DOMAIN)
    assert key(values) == key(values + 1e-12)
    assert key(values * 1e12) == key(values * (1e12 + 1))
    assert key(values) != key(values + 1e-5)
    zeros = torch.zeros_like(values)
    assert key(zeros) == key(-zeros)
    nan = torch.tensor([np.nan], dtype=torch.float64)
    assert key(nan.expand(112).contiguous()) == key(-nan.expand(112).contiguous())


@pytest.mark.parametrize("tolerance", [1e-12, 1e-6, 1.0])
def test_the_largest_values_are_told_from_infinity(tolerance):
    domain = DomainSpec(points=100, tolerance=tolerance)
    rows = torch.tensor([1.7e308, -1.7e308, np.inf, -np.inf, np.nan], dtype=torch.float64)
    keys, finite = fingerprints(rows.unsqueeze(1).repeat(1, 112), domain)
    assert len(set(keys.tolist())) == 5
    assert finite.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("points", [2, 15, 16, 17, 1000])
def test_the_grid_is_filled_up_with_its_last_point(points):
    domain = DomainSpec(points=points)
    x = grid(domain)
    assert len(x) % 16 == 0
    assert torch.equal(x[:points], torch.linspace(-5, 5, points, dtype=torch.float64))
    assert set(x[points:].tolist()) <= {5.0}


@pytest.mark.parametrize("name", of_kind("unary"))
def test_a_row_has_the_same_bits_alone_and_among_others(name):
    x = grid(DomainSpec())
    rows = torch.stack([x * factor for factor in (1.0, 0.3, -2.0)])
    expression = parse(f"{name}(x)")
    together = evaluate(expression, rows)
    for row, values in zip(rows, together, strict=True):
        assert torch.equal(evaluate(expression, row), values)


# --- all trees of four operators ------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Space:
    return load_space("four_operators")


@given(st.data())
def test_numbers_of_the_large_space_lead_there_and_back(large, data):
    assert len(large) == 27**4 + (3 * 7 + 4) * 27**3 + 8 == 1_023_524
    number = data.draw(st.integers(0, len(large) - 1))
    params = large.params(number)
    assert large.number(params) == number
    expression = large.expression(number)
    assert parse(str(expression)) == expression
    assert sum(node.arguments != () for node in expression.nodes()) == (
        4 if "expression" not in params else 1
    )


def test_a_cut_of_the_large_space_is_the_oracles(large):
    spec = large.spec.model_copy(
        update={
            "unary": ("zero", "identity", "reciprocal", "exp", "swish"),
            "binary": ("add", "sub", "pow"),
            "domain": large.spec.domain.model_copy(update={"points": 160}),
        }
    )
    space = Space(spec)
    catalogue = space.catalogue
    groups, shortest, finite = oracle(space)
    np.testing.assert_array_equal(catalogue.group, groups)
    np.testing.assert_array_equal(catalogue.shortest, shortest)
    np.testing.assert_array_equal(catalogue.finite, finite)
    for index in range(0, len(catalogue), 5):
        assert catalogue.index(catalogue.text(index)) == index


@pytest.mark.slow
def test_the_whole_large_space(large):
    seen: list[tuple[int, int]] = []
    catalogue = Catalogue.build(large, progress=lambda *step: seen.append(step))
    assert len(catalogue.group) == 1_023_524
    # Kernels of other processors may round a few functions into other cells.
    assert len(catalogue) == pytest.approx(388_570, abs=100)
    assert int(catalogue.finite.sum()) == pytest.approx(363_386, abs=100)
    assert seen[-1][0] == seen[-1][1] == seen[0][1]
    assert len({catalogue.index(baseline) for baseline in large.baselines}) == 8
    for number in range(0, len(large), 1009):
        expression = large.expression(number)
        index = int(catalogue.group[number])
        assert catalogue.index(expression) == catalogue.index(large.params(number)) == index
        text = str(canonical(large.expression(int(catalogue.shortest[index]))))
        assert len(text) <= len(str(canonical(expression)))
        values = evaluate(expression, grid(large.spec.domain))
        own = evaluate(catalogue.expression(index), grid(large.spec.domain))
        # Half a cell to either side.
        assert torch.allclose(
            torch.asinh(values), torch.asinh(own), rtol=0, atol=1.01e-6, equal_nan=True
        )
        assert bool(catalogue.finite[index]) == bool(torch.isfinite(values).all())

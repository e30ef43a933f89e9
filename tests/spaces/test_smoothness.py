"""What a space file may require of its functions."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
import smoothness_oracle as oracle
import torch
from mpmath import mpf

from bo_act import ActivationSampler
from bo_act.activations.derivatives import Batch, batches
from bo_act.activations.expressions import Expression, parse
from bo_act.errors import ExpressionError, SearchError, SpecError
from bo_act.search.strategies import Evolution
from bo_act.search.unenumerated import ExpressionPool
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.catalogue_cache import load_catalogue
from bo_act.spaces.smoothness import REQUIREMENTS, count, satisfied, unsatisfied
from bo_act.spaces.space import Space, load_space
from bo_act.specs import DomainSpec, SpaceSpec, StrategySpec

DOMAIN = DomainSpec()
UNARY = ("identity", "tanh", "relu", "sigmoid", "softplus", "abs", "expm1", "sinh", "reciprocal")
SMOOTH = ("finite_at_zero", "differentiable_at_zero", "twice_differentiable")


def required(*require: str, **update: object) -> Space:
    content = {
        "name": "some",
        "unary": UNARY,
        "binary": ("add", "mul", "div"),
        "schemas": ("binary(unary(x),unary(x))",),
        "require": require,
    }
    return Space(SpaceSpec.model_validate(content | update))


# --- functions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("tanh(x)", 0), ("gelu(x)", 0), ("mish(x)", 0), ("swish(x)", 0), ("softplus(x)", 0),
        ("x", 0), ("one(x)", 0), ("square(abs(x))", 1), ("mul(x,softsign(x))", 0),
        ("max(x,tanh(x))", 0),  # touch at zero, with two derivatives in common
        ("exp(exp(x))", 0),  # steep: a thousand times as large at the end of a step
        ("exp(exp(square(tanh(x))))", 0),
        ("elu(x)", 1), ("softsign(x)", 1), ("bessel_i1e(x)", 1), ("square(relu(x))", 1),
        ("elish(x)", 1), ("hard_sigmoid(x)", 1), ("relu(sub(x,one(x)))", 1),
        ("max(x,sub(exp(x),exp(one(x))))", 1),  # a kink where nothing is zero
        ("add(exp(exp(x)),hard_sigmoid(x))", 1),  # a kink of 0.2 beside what is steep
        ("relu(x)", 2), ("leakyrelu(x)", 2), ("selu(x)", 2), ("abs(x)", 2), ("bessel_i0e(x)", 2),
        ("pow(abs(x),x)", 2),  # the slope falls to minus infinity, as a logarithm
        ("pow(abs(x),sigmoid(x))", 2), ("sub(relu(x),relu(negative(x)))", 2),
        ("pow(exp(x),reciprocal(sinh(x)))", 2),  # finite at zero: one to the infinity
        ("reciprocal(x)", 3), ("div(x,x)", 3), ("div(sinh(x),x)", 3),
        ("min(one(x),reciprocal(x))", 3),  # minus infinity at -0.0
    ],
)  # fmt: skip
def test_what_a_function_satisfies(text, missing):
    found = unsatisfied(parse(text), DOMAIN, REQUIREMENTS)
    assert found == REQUIREMENTS[len(REQUIREMENTS) - missing :]


def check(catalogue: Catalogue, indices: range) -> None:
    class Chosen(list[Expression]):
        def expression(self, index: int) -> Expression:
            return self[index]

    functions = Chosen(catalogue.expression(index) for index in indices)
    ours = satisfied(functions, DOMAIN)
    for place, function in enumerate(functions):
        zeros = [value(function, dtype, order) for dtype in _DTYPES for order in (0, 1, 2)]
        finite = bool(torch.isfinite(torch.cat(zeros[::3])).all())
        expected = [finite]
        # Mathematics, and that torch has at zero what mathematics have.
        expected.append(
            finite
            and oracle.differentiable_at_zero(function)
            and is_derivative(function, zeros[1::3], 0)
        )
        expected.append(
            expected[1]
            and oracle.twice_differentiable(function, DOMAIN)
            and is_derivative(function, zeros[2::3], 1)
        )
        assert [bool(good[place]) for good in ours.values()] == expected, str(function)


_DTYPES = (torch.float64, torch.float32)


def value(function: Expression, dtype: torch.dtype, order: int) -> torch.Tensor:
    (batch,) = batches(_alone(function))
    assert isinstance(batch, Batch)
    return batch.derivatives(torch.tensor([0.0, -0.0], dtype=dtype), order)[order][0].double()


def _alone(function: Expression):
    class One:
        def __len__(self) -> int:
            return 1

        def expression(self, index: int) -> Expression:
            return function

    return One()


def is_derivative(function: Expression, torchs: list[torch.Tensor], order: int) -> bool:
    truth = float(oracle.one_sided(function, mpf(0))[order][0])
    return all(np.allclose(some.numpy(), truth, rtol=1e-3, atol=1e-4) for some in torchs)


def test_functions_are_those_of_the_oracle(act_bench_catalogue):
    check(act_bench_catalogue, range(5, len(act_bench_catalogue), 31))


@pytest.mark.slow
def test_all_functions_are_those_of_the_oracle(act_bench_catalogue):
    check(act_bench_catalogue, range(len(act_bench_catalogue)))


def test_a_function_is_the_same_alone_and_among_others(act_bench_catalogue):
    together = satisfied(act_bench_catalogue, DOMAIN)
    for index in range(0, len(act_bench_catalogue), 97):
        missing = unsatisfied(act_bench_catalogue.expression(index), DOMAIN, REQUIREMENTS)
        assert [name for name in REQUIREMENTS if not together[name][index]] == list(missing)


def test_the_domain_decides_where_to_be_smooth():
    function = parse("relu(x)")
    right = DomainSpec(low=0.5, high=3.0)
    assert unsatisfied(function, right, ["twice_differentiable"]) == ()
    assert unsatisfied(function, DomainSpec(low=-1e-3), ["twice_differentiable"]) != ()


# --- spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("require", [SMOOTH[:1], SMOOTH[1:2], SMOOTH[2:], SMOOTH[:2]])
def test_a_space_has_the_functions_that_satisfy_what_it_requires(require):
    space, everything = required(*require), required().catalogue
    good = np.logical_and.reduce(list(satisfied(everything, DOMAIN, require).values()))
    catalogue = space.catalogue
    expected = [everything.text(int(index)) for index in np.flatnonzero(good)]
    assert [catalogue.text(index) for index in range(len(catalogue))] == expected
    assert 0 < len(catalogue) < len(everything)
    for number in range(len(space)):
        theirs, index = everything.group[number], catalogue.group[number]
        assert (index >= 0) == good[theirs]
        if index >= 0:
            assert everything.text(theirs) == catalogue.text(index)
            assert catalogue.index(space.params(number)) == index
            assert catalogue.index(str(space.expression(number))) == index
        else:
            with pytest.raises(ExpressionError, match="is not in the space 'some', which requires"):
                catalogue.index(space.params(number))


def test_a_function_that_was_left_out():
    catalogue = required("finite_at_zero", "differentiable_at_zero").catalogue
    with pytest.raises(ExpressionError, match=r"which requires .*: it is not differentiable_at_ze"):
        catalogue.index("relu(x)")
    with pytest.raises(ExpressionError, match=r"none of its \d+ functions has these values"):
        catalogue.index("square(square(tanh(x)))")
    # Another spelling of a member, though this one is 0 / 0 at zero.
    assert catalogue.text(catalogue.index("div(expm1(x),sinh(x))")) == "add(sigmoid(x),sigmoid(x))"


def test_nothing_is_left():
    space = required("twice_differentiable", unary=("relu", "abs"), binary=("max",))
    with pytest.raises(SpecError, match=r"require: none of its \d functions .*require fewer"):
        space.catalogue  # noqa: B018


def test_requirements_are_part_of_a_spaces_identity_and_of_its_kept_catalogue(monkeypatch):
    monkeypatch.setattr("bo_act.spaces.catalogue_cache.KEPT_FROM", 1)
    spaces = [required(*require) for require in ((), SMOOTH[:1], SMOOTH[:2])]
    assert len({space.hash for space in spaces}) == 3
    first = [load_catalogue(space) for space in spaces]
    again = [load_catalogue(space) for space in spaces]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.group, other.group)
        assert one.hash == other.hash
    assert len({catalogue.hash for catalogue in first}) == 3


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ('["finite_at_zeros"]', r"require.0: .*'finite_at_zero'.*\(did you mean 'finite_at_zero'"),
        ('["finite_at_zero", "finite_at_zero"]', "require: 'finite_at_zero' is listed twice"),
        ('"finite_at_zero"', "require: .*tuple, got 'finite_at_zero'"),
        ("[3]", "require.0: .*got 3"),
    ],
)
def test_requirements_that_are_none(tmp_path, require, message):
    path = tmp_path / "t.toml"
    path.write_text(f'name = "t"\nexpressions = ["x"]\nrequire = {require}\n')
    with pytest.raises(SpecError, match=message):
        load_space(str(path))


# --- searches -------------------------------------------------------------------------------


def objective(space: Space):
    def run(trial: optuna.Trial) -> float:
        return float(space.suggest(trial)(torch.tensor([0.3])))

    return run


@pytest.mark.parametrize("options", [{}, {"strategy": "evolution"}, {"candidates": "trees"}])
def test_a_search_proposes_what_is_required(options):
    space = required(*SMOOTH)
    if "strategy" in options:
        options = {"strategy": Evolution(space, **StrategySpec().model_dump(exclude={"name"}))}
    study = optuna.create_study(direction="maximize", sampler=ActivationSampler(space, **options))
    study.optimize(objective(space), n_trials=12)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    for trial in study.trials:
        function = parse(trial.user_attrs["activation"])
        assert unsatisfied(function, DOMAIN, SMOOTH) == ()


def test_a_sampler_that_knows_no_catalogue_is_told():
    space = required(*SMOOTH)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective(space), n_trials=40)
    for trial in study.trials:
        spelled = space.expression(space.number(trial.params))
        fit = unsatisfied(spelled, DOMAIN, SMOOTH) == ()
        assert trial.state.name == ("COMPLETE" if fit else "PRUNED")
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}


def test_a_baseline_that_does_not_satisfy_what_is_required():
    space = required(*SMOOTH, baselines=("relu(x)", "tanh(x)"))
    for options in ({}, {"candidates": "trees"}):
        with pytest.raises(ExpressionError, match=r"relu\(x\) is not in the space.*twice_diff"):
            ActivationSampler(space, **options)


def test_from_tree_to_tree_nothing_may_be_left():
    with pytest.raises(SearchError, match=r"no function of a sample .*require less"):
        ExpressionPool(required("twice_differentiable", unary=("relu", "abs"), binary=("max",)))


# --- the command ----------------------------------------------------------------------------


def test_the_command_counts(bo_act, monkeypatch):
    code, told, _ = bo_act("space", "classic", "--json")
    assert code == 0
    assert json.loads(told)["satisfying"] == {
        "finite_at_zero": 34,
        "differentiable_at_zero": 31,
        "twice_differentiable": 23,
        "of": 34,
    }
    assert json.loads(told)["require"] == []
    code, told, _ = bo_act("space", "classic")
    assert "differentiable at zero" in told
    monkeypatch.setattr("bo_act.spaces.smoothness._DRAWN", 40)
    code, told, _ = bo_act("space", "six_operators")
    assert code == 0
    assert "of 40 drawn at random" in told


def test_a_part_of_many_is_counted(act_bench_catalogue, monkeypatch):
    everything = count(act_bench_catalogue, DOMAIN)
    monkeypatch.setattr("bo_act.spaces.smoothness._COUNTED", 1_000)
    part = count(act_bench_catalogue, DOMAIN)
    assert (everything.drawn, part.drawn) == (False, True)
    for name, number in everything.satisfying.items():
        assert abs(number / everything.of - part.satisfying[name] / part.of) < 0.05

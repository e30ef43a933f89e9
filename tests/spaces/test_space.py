"""Spaces by number, text and parameters, and the distinct functions in them."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import FixedTrial
from scipy import special
from strategies import space_specs

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.module import Activation
from bo_act.activations.operators import of_kind
from bo_act.errors import ContentNotFoundError, ExpressionError, SpecError
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec

MIXED = SpaceSpec(
    name="mixed",
    unary=("relu", "exp", "tanh"),
    binary=("add", "sub", "max"),
    nary=("sum_n", "prod_n", "max_n"),
    schemas=(
        "unary(unary(x))",
        "binary(unary(x),unary(x))",
        "nary(unary(x),unary(x),unary(x))",
        "unary(binary(unary(unary(x)),x))",
        "tanh(x)",
    ),
    expressions=("gelu(x)", "mul(x,erf(x))"),
)


@pytest.fixture(scope="module")
def mixed() -> Space:
    return Space(MIXED)


# --- the Act-Bench space against an enumeration in numpy ------------------------------------


def selu(x):
    return 1.0507009873554804934193349852946 * np.where(
        x > 0, x, 1.6732632423543772848170429916717 * np.expm1(np.minimum(x, 0))
    )


UNARY = {
    "zero": np.zeros_like,
    "one": np.ones_like,
    "identity": np.copy,
    "negative": np.negative,
    "abs": np.abs,
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "exp": np.exp,
    "erf": special.erf,
    "erfc": special.erfc,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "expm1": np.expm1,
    "sigmoid": special.expit,
    "log_sigmoid": special.log_expit,
    "arcsinh": np.arcsinh,
    "arctan": np.arctan,
    "bessel_i0e": special.i0e,
    "bessel_i1e": special.i1e,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": selu,
    "swish": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
}


def oracle_partition() -> tuple[list[str], list[int], np.ndarray]:
    """All texts, a group for each, and the values: rows compared pairwise where they are near."""
    x = -5 + 10 * np.arange(1000) / 999
    parts = {name: function(x) for name, function in UNARY.items()}
    texts, rows = [], []
    with np.errstate(all="ignore"):
        for binary, function in BINARY.items():
            for left, a in parts.items():
                for right, b in parts.items():
                    texts.append(f"{binary}({left}(x),{right}(x))")
                    rows.append(function(a, b))
        values = np.array(rows)
        scaled = np.arcsinh(values)
        # Equal rows have equal means of what is finite; infinities and NaN are told apart after.
        key = np.nan_to_num(scaled, nan=-7.0, posinf=77.0, neginf=-77.0)
        key = key @ np.random.default_rng(0).uniform(0.5, 1.5, size=1000) / 1000
        order = np.argsort(key)
        parent = list(range(len(rows)))

        def root(i: int) -> int:
            while parent[i] != i:
                i = parent[i]
            return i

        for place, i in enumerate(order):
            for j in order[place + 1 :]:
                if key[j] - key[i] > 1e-6:
                    break
                if np.allclose(scaled[i], scaled[j], rtol=0, atol=1e-7, equal_nan=True):
                    parent[max(root(i), root(j))] = min(root(i), root(j))
    return texts, [root(i) for i in range(len(rows))], values


@pytest.fixture(scope="module")
def partition():
    return oracle_partition()


def test_act_bench_counts(act_bench, act_bench_catalogue):
    assert len(act_bench) == len(list(act_bench)) == 5103
    assert len(act_bench_catalogue) == 2826
    assert int(act_bench_catalogue.finite.sum()) == 2412
    assert repr(act_bench_catalogue) == (
        "Catalogue('act_bench', 5103 expressions, 2826 functions, 2412 finite)"
    )


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-10])
def test_the_count_does_not_depend_on_the_tolerance(act_bench, act_bench_catalogue, tolerance):
    domain = act_bench.spec.domain.model_copy(update={"tolerance": tolerance})
    other = Space(act_bench.spec.model_copy(update={"domain": domain})).catalogue
    assert len(other) == 2826
    np.testing.assert_array_equal(other.group, act_bench_catalogue.group)


def test_the_partition_is_the_oracles(act_bench, act_bench_catalogue, partition):
    texts, roots, values = partition
    assert texts == [str(expression) for expression in act_bench]
    group = act_bench_catalogue.group
    pairs = set(zip(roots, group.tolist(), strict=True))
    assert len(pairs) == len(set(roots)) == len(act_bench_catalogue)
    finite = np.isfinite(values).all(axis=1)
    np.testing.assert_array_equal(act_bench_catalogue.finite[group], finite)


def test_the_spellings_of_relu(act_bench_catalogue):
    # By hand: what is below relu on both sides, what is above it, and the neutral elements.
    below = "zero identity tanh log_sigmoid arcsinh arctan bessel_i1e relu swish softsign elu"
    above = "abs exp cosh softplus relu"
    pairs = {("max", frozenset((name, "relu"))) for name in below.split()}
    pairs |= {("min", frozenset((name, "relu"))) for name in above.split()}
    pairs |= {("max", frozenset(("zero", "identity"))), ("max", frozenset(("zero", "elu")))}
    pairs |= {("add", frozenset(("zero", "relu"))), ("sub", frozenset(("zero", "relu")))}
    pairs |= {(name, frozenset(("one", "relu"))) for name in ("mul", "div", "pow")}
    found = {
        (e.name, frozenset(argument.name for argument in e.arguments))
        for e in act_bench_catalogue.equivalents(act_bench_catalogue.index("relu(x)"))
    }
    assert found == pairs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pow(exp(x),log_sigmoid(x))", "pow(sigmoid(x),identity(x))"),
        ("mul(identity(x),sigmoid(x))", "swish(x)"),
        ("sub(exp(x),one(x))", "expm1(x)"),
        ("div(sinh(x),cosh(x))", "tanh(x)"),
        ("relu(x)", "max(x,zero(x))"),
        ("add(x,x)", "mul(x,add(one(x),one(x)))"),  # the second is outside the schema
        ("negative(negative(negative(x)))", "sub(zero(x),identity(x))"),
    ],
)
def test_equal_functions_have_one_index(act_bench_catalogue, one, other):
    assert act_bench_catalogue.index(one) == act_bench_catalogue.index(parse(other))


def test_different_functions_have_different_indices(act_bench_catalogue):
    texts = ["relu(x)", "elu(x)", "selu(x)", "mul(exp(x),zero(x))", "max(relu(x),sigmoid(x))"]
    assert len({act_bench_catalogue.index(text) for text in texts}) == len(texts)


def test_every_baseline_is_a_member(act_bench, act_bench_catalogue):
    assert len({act_bench_catalogue.index(b) for b in act_bench.baselines}) == 8


@pytest.mark.parametrize("text", ["mish(x)", "exp(exp(exp(x)))", "exp(square(square(x)))"])
def test_a_function_that_is_no_member(act_bench_catalogue, text):
    with pytest.raises(ExpressionError, match=r"is not in the space 'act_bench'.*2826 functions"):
        act_bench_catalogue.index(text)


def test_a_representative_is_the_most_stable_spelling_of_its_group(act_bench, act_bench_catalogue):
    """Against autograd, expression by expression."""
    points = [0.0, -0.0, *(s * p for p in (5, 10, 20, 50, 100, 1e4) for s in (1, -1))]

    def faults(expression: Expression) -> list[int]:
        counts = [0, 0, 0, 0]
        for dtype in (torch.float64, torch.float32):
            x = torch.tensor(points, dtype=dtype)
            value, slope = map(torch.isfinite, value_and_slope(canonical(expression), x))
            for place, good in enumerate((value, value & slope)):
                counts[place] += int((~good[:2]).sum())
                counts[place + 2] += int((~good[2:]).sum())
        return counts

    best: dict[int, tuple[list[int], int, int]] = {}
    shortest: dict[int, tuple[int, int]] = {}
    for number, expression in enumerate(act_bench):
        index = int(act_bench_catalogue.group[number])
        length = len(str(canonical(expression)))
        shortest[index] = min((length, number), shortest.get(index, (length, number)))
        # Of what is not finite on the domain every spelling is as bad.
        found = faults(expression) if act_bench_catalogue.finite[index] else [0]
        mine = (found, length, number)
        best[index] = min(mine, best.get(index, mine))
    for index, (_, _, number) in best.items():
        assert act_bench_catalogue.representative[index] == number
    assert [shortest[i][1] for i in range(len(shortest))] == act_bench_catalogue.shortest.tolist()


@pytest.mark.parametrize(
    ("steady", "other"),
    [
        ("add(sigmoid(x),sigmoid(x))", "div(expm1(x),sinh(x))"),  # 0 / 0 at 0, inf / inf at 90
        ("reciprocal(sigmoid(x))", "div(x,swish(x))"),
        ("tanh(x)", "div(sinh(x),cosh(x))"),
    ],
)
def test_of_equal_spellings_the_steady_one_is_kept(act_bench_catalogue, steady, other):
    index = act_bench_catalogue.index(other)
    assert act_bench_catalogue.text(index) == steady
    x = torch.tensor([0.0, -0.0, 90.0, -20.0])
    assert not bool(torch.isfinite(evaluate(parse(other), x)).all())
    assert all(bool(torch.isfinite(part).all()) for part in value_and_slope(parse(steady), x))


def test_the_hash_is_that_of_studies_made_before_stability_counted(act_bench_catalogue):
    """Studies and benchmarks hold it: another one would part them from their functions."""
    expected = "35bcc1f5584923d736304905d05c1acedd4e4ba30978ae75f00118ded94aca0f"
    assert act_bench_catalogue.hash == expected
    assert int((act_bench_catalogue.representative != act_bench_catalogue.shortest).sum()) == 3


def test_every_spelling_leads_to_its_function_by_params(act_bench, act_bench_catalogue):
    for number, expression in enumerate(act_bench):
        params = act_bench.params(number)
        left, right = expression.arguments
        assert params == {"binary": expression.name, "left": left.name, "right": right.name}
        assert act_bench.number(params) == number
        assert act_bench_catalogue.index(params) == act_bench_catalogue.group[number]


def test_every_function_comes_back_from_its_text(act_bench, act_bench_catalogue):
    for index in range(0, len(act_bench_catalogue), 3):
        assert act_bench_catalogue.index(act_bench_catalogue.text(index)) == index
    for number in range(0, len(act_bench), 7):
        text = str(act_bench.expression(number))
        assert act_bench_catalogue.index(text) == act_bench_catalogue.group[number]
    for index in (0, 1000, 2825):
        params = act_bench_catalogue.params(index)
        assert act_bench.number(params) == act_bench_catalogue.representative[index]
        assert isinstance(act_bench_catalogue.activation(index), Activation)


# --- other spaces ---------------------------------------------------------------------------


def test_classic_functions_are_distinct():
    space = load_space("classic")
    assert len(space.catalogue) == len(space) == len(space.spec.expressions)
    assert space.catalogue.finite.all()
    members = set(range(len(space)))
    assert {space.catalogue.index(b) for b in space.baselines} < members


@settings(max_examples=60)
@given(space_specs())
def test_number_params_and_expression_are_one_to_one(spec):
    space = Space(spec)
    listed = list(space)
    assert len(listed) == len(space)
    for number, expression in enumerate(listed):
        assert space.expression(number) == expression
        params = space.params(number)
        assert space.number(params) == number
        assert set(params) <= set(space.distributions)
        for name, value in params.items():
            assert value in space.distributions[name].choices
        assert space.suggest_expression(FixedTrial(params)) == canonical(expression)
    keys = {tuple(sorted(space.params(number).items())) for number in range(len(space))}
    assert len(keys) == len(space)


@settings(max_examples=25)
@given(space_specs())
def test_a_catalogue_evaluates_what_it_enumerates(spec):
    space = Space(spec.model_copy(update={"domain": spec.domain.model_copy(update={"points": 20})}))
    catalogue = space.catalogue
    assert len(catalogue.group) == len(space)
    assert sorted(set(catalogue.group.tolist())) == list(range(len(catalogue)))
    for number in range(0, len(space), max(1, len(space) // 10)):
        assert catalogue.index(space.expression(number)) == catalogue.group[number]
        assert catalogue.index(space.params(number)) == catalogue.group[number]


@pytest.mark.parametrize("number", [-1, 3, 1000])
def test_a_number_outside_the_space(number):
    space = Space(SpaceSpec(name="t", unary=("relu", "exp"), schemas=("unary(x)", "x")))
    with pytest.raises(IndexError, match="from 0 to 2"):
        space.expression(number)
    with pytest.raises(IndexError, match="from 0 to 2"):
        space.params(number)


def test_slots_are_named_by_place_and_shared_by_schemas(mixed):
    names = {shape.text: [slot.name for slot in shape.slots] for shape in mixed.schemas}
    assert names == {
        "unary(unary(x))": ["unary", "inner"],
        "binary(unary(x),unary(x))": ["binary", "left", "right"],
        "nary(unary(x),unary(x),unary(x))": ["nary", "arg1", "arg2", "arg3"],
        "unary(binary(unary(unary(x)),x))": [
            "unary", "inner_binary", "inner_left", "inner_left_inner",
        ],
        "tanh(x)": [],
    }  # fmt: skip
    three = CategoricalDistribution(("relu", "exp", "tanh"))
    distributions = mixed.distributions
    unary = {"unary", "inner", "left", "right", "arg1", "arg2", "arg3"}
    for name in unary | {"inner_left", "inner_left_inner"}:
        assert distributions.pop(name) == three
    assert distributions.pop("binary") == CategoricalDistribution(("add", "sub", "max"))
    assert distributions.pop("inner_binary") == CategoricalDistribution(("add", "sub", "max"))
    assert distributions.pop("nary") == CategoricalDistribution(("sum_n", "prod_n", "max_n"))
    assert distributions.pop("expression") == CategoricalDistribution(("gelu(x)", "mul(x,erf(x))"))
    assert distributions.pop("schema") == CategoricalDistribution((*MIXED.schemas, "expression"))
    assert not distributions
    del mixed.__dict__["distributions"]


def test_the_last_slot_runs_fastest(mixed):
    assert len(mixed) == 9 + 27 + 81 + 81 + 1 + 2
    texts = [str(expression) for expression in mixed]
    assert texts[:4] == ["relu(relu(x))", "relu(exp(x))", "relu(tanh(x))", "exp(relu(x))"]
    assert texts[9:11] == ["add(relu(x),relu(x))", "add(relu(x),exp(x))"]
    assert texts[-3:] == ["tanh(x)", "gelu(x)", "mul(x,erf(x))"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"unary": "relu", "inner": "exp"},  # of which schema?
        {"schema": "unary(unary(x))", "unary": "relu"},
        {"schema": "unary(unary(x))", "unary": "relu", "inner": "gelu"},
        {"schema": "unary(x)", "unary": "relu", "inner": "exp"},
        {"schema": "expression", "expression": "relu(x)"},
        {"schema": "expression"},
    ],
)
def test_params_of_no_member(mixed, params):
    with pytest.raises(ExpressionError, match=r"not a member of the space 'mixed'.*its slots are"):
        mixed.number(params)


def test_other_params_are_left_aside(act_bench):
    params = {"binary": "max", "left": "relu", "right": "exp", "learning_rate": 0.1, "inner": "exp"}
    assert str(act_bench.expression(act_bench.number(params))) == "max(relu(x),exp(x))"


@pytest.mark.parametrize("normalize", [False, True])
def test_suggest_with_a_fixed_trial(mixed, normalize):
    trial = FixedTrial(
        {"schema": "binary(unary(x),unary(x))", "binary": "max", "left": "tanh", "right": "relu"}
    )
    activation = mixed.suggest(trial, normalize=normalize)
    assert repr(activation) == repr(Activation("max(relu(x),tanh(x))", normalize=normalize))
    assert str(mixed.suggest_expression(FixedTrial({"schema": "tanh(x)"}))) == "tanh(x)"


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_suggest_with_optunas_samplers(mixed, sampler):
    members = {canonical(expression) for expression in mixed}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        expression = mixed.suggest_expression(trial)
        assert expression in members
        assert canonical(mixed.expression(mixed.number(trial.params))) == expression
        return -float(len(str(expression)))

    study.optimize(objective, n_trials=25)
    assert len(study.trials) == 25
    assert len({tuple(sorted(t.params.items())) for t in study.trials}) > 5


def test_the_hash_is_of_what_is_in_the_space(act_bench):
    spec = act_bench.spec
    domain = spec.domain.model_copy(update={"high": 6.0})
    same = ({"description": "other"}, {"name": "other"}, {"baselines": ()})
    other = (
        {"unary": spec.unary[1:]},
        {"unary": (spec.unary[1], spec.unary[0], *spec.unary[2:])},  # other numbers
        {"binary": spec.binary[:-1]},
        {"domain": domain},
        {"expressions": ("mish(x)",)},
        {"schemas": ("binary(unary(x),x)",)},
    )
    for update in same:
        assert Space(spec.model_copy(update=update)).hash == act_bench.hash
    hashes = {Space(spec.model_copy(update=update)).hash for update in other}
    assert len(hashes | {act_bench.hash}) == len(other) + 1


def test_the_catalogues_hash(tiny):
    assert Catalogue.build(tiny).hash == tiny.catalogue.hash
    fewer = tiny.spec.model_copy(update={"expressions": ()})
    assert Space(fewer).catalogue.hash != tiny.catalogue.hash


def test_building_is_quiet(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Catalogue.build(tiny)) < len(tiny)


# --- space files ----------------------------------------------------------------------------

GOOD = 'name = "t"\nschemas = ["unary(x)"]\nunary = ["relu", "exp"]\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD.replace("relu", "rellu"),
            r"unknown unary operator 'rellu' \(did you mean 'relu'\?\)",
        ),
        (GOOD.replace("relu", "add"), "unknown unary operator 'add'.*known: zero, one"),
        (GOOD + 'binary = ["exp"]', "unknown binary operator 'exp'"),
        (GOOD.replace("exp", "relu"), "unary: 'relu' is listed twice"),
        (GOOD.replace("unary(x)", "binary(x,x)"), r"'binary' slot.*add `binary = \[...\]`"),
        (GOOD.replace("unary(x)", "unary(x,x)"), "schemas: unary.*position 0"),
        (GOOD.replace("unary(x)", "unari(x)"), "unknown operator 'unari'.*did you mean 'unary'"),
        (GOOD.replace('"unary(x)"', '"unary(x)", "unary( x)"'), r"'unary\(x\)' is listed twice"),
        (GOOD + 'expressions = ["x", "tanh(x)", "tanh( x )"]', r"'tanh\(x\)' is listed twice"),
        (GOOD + 'expressions = ["unary(x)"]', "expressions: unknown operator 'unary'"),
        (GOOD + 'baselines = ["relu(x"]', "baselines: expected ',' or '\\)'.*position 6"),
        (GOOD + 'baseline = ["relu(x)"]', r"unknown key 'baseline' \(did you mean 'baselines'\?\)"),
        (GOOD + "[domain]\nhigher = 3", r"unknown key 'domain.higher' \(did you mean 'high'\?\)"),
        (GOOD + "[domain]\nlow = 5", "domain: expected low < high, got low = 5.0, high = 5.0"),
        (GOOD + "[domain]\npoints = 1", "domain.points: .*greater than or equal to 2, got 1"),
        (GOOD + "[domain]\ntolerance = 0", "domain.tolerance: .*got 0"),
        (GOOD.replace('["unary(x)"]', "3"), "schemas: .*got 3"),
        (GOOD.replace('"relu"', "7"), "unary.0: .*string, got 7"),
        ('schemas = ["relu(x)"]', "missing key 'name'"),
        ('name = ""\nexpressions = ["x"]', "name: .*at least 1 character"),
        ('name = "t"', "at least one of 'schemas' and 'expressions', got neither"),
        ("", "missing key 'name'"),
        ("name = \n", "not valid TOML.*line 1"),
        (GOOD + "name = 't'", "not valid TOML"),
        (b"\xff\xfe", "expected text in UTF-8"),
    ],
)
def test_bad_space_files_are_explained_on_one_line(tmp_path, content, message):
    path = tmp_path / "t.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError, match=message) as caught:
        load_space(str(path))
    assert "\n" not in str(caught.value)


def test_a_good_space_file(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(GOOD)
    assert [str(expression) for expression in load_space(str(path))] == ["relu(x)", "exp(x)"]


def test_a_space_that_is_not_there():
    with pytest.raises(
        ContentNotFoundError, match=r"did you mean 'act_bench'.*known names: .*classic"
    ):
        load_space("act_bensh")


@given(st.sampled_from(["unary", "binary", "nary"]), st.data())
@settings(max_examples=20)
def test_a_whole_kind_is_one_schema(kind, data):
    names = of_kind(kind)
    count = {"unary": 1, "binary": 2, "nary": data.draw(st.integers(2, 4))}[kind]
    schema = f"{kind}({','.join('x' * count)})"
    space = Space(SpaceSpec.model_validate({"name": "t", kind: names, "schemas": (schema,)}))
    assert [expression.name for expression in space] == list(names)

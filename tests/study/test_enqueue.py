"""Functions that a person chooses: enqueued, evaluated, explained; and what cannot be."""

from __future__ import annotations

import optuna
import pytest
from made_up import TASK
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FixedTrial, TrialState

from bo_act import ActivationSampler, read_study, why
from bo_act.activations.expressions import parse
from bo_act.errors import ExpressionError, SearchError
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec
from bo_act.study.storage.opening import load_study, open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)

RATE = {"rate": FloatDistribution(1e-4, 1.0, log=True)}


@pytest.fixture(scope="module")
def space() -> Space:
    """147 expressions in two schemas, and two named ones."""
    return Space(
        SpaceSpec(
            name="small",
            schemas=("binary(unary(x),unary(x))", "unary(x)"),
            unary=("identity", "tanh", "relu", "sigmoid", "erf", "softplus"),
            binary=("add", "mul", "max", "sub"),
            expressions=("swish(x)", "gelu(x)"),
            baselines=("relu(x)", "tanh(x)"),
        )
    )


@pytest.fixture(scope="module")
def features(space) -> FeatureTable:
    return compute_features(space)


def new_study(space: Space, features: FeatureTable | None = None, **options) -> optuna.Study:
    sampler = ActivationSampler(space, features=features, **options)
    return optuna.create_study(direction="maximize", sampler=sampler)


def run(space: Space, *names: str):
    def objective(trial: optuna.Trial) -> float:
        texts = []
        for name in names or ("",):
            texts.append(str(space.suggest(trial, name).expression))
            key = f"{name}.activation" if name else "activation"
            assert trial.user_attrs[key] == texts[-1]  # inside the objective
            assert space.activation_of(trial, name) == texts[-1]
        return trial.suggest_float("rate", 1e-4, 1.0, log=True) + len(texts[0])

    return objective


# --- what is enqueued is evaluated ----------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ours", "named", "delegate", "trees", "TPE", "random"])
@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        ("relu(x)", "relu(x)"),
        ("max(relu(x), relu(x))", "relu(x)"),
        (parse("mul(sigmoid(x),erf(x))"), "mul(erf(x),sigmoid(x))"),
        ("mul(x,tanh(softplus(x)))", None),
        ("gelu(x)", "gelu(x)"),
    ],
)
def test_what_is_enqueued_comes_first(space, features, sampler, spelling, text):
    study = {
        "ours": lambda: new_study(space, features),
        "named": lambda: new_study(space, features, parameters=RATE),
        "delegate": lambda: new_study(space, features, delegate=TPESampler(seed=0)),
        "trees": lambda: new_study(space, candidates="trees"),
        "TPE": lambda: optuna.create_study(sampler=TPESampler(seed=0)),
        "random": lambda: optuna.create_study(sampler=RandomSampler(seed=0)),
    }[sampler]()
    if text is None:
        with pytest.raises(ExpressionError, match="is not in the space 'small'"):
            space.enqueue(study, spelling)
        assert not study.trials
        return
    space.enqueue(study, spelling, rate=0.25)
    (waiting,) = study.trials
    assert space.activation_of(waiting) == text
    study.optimize(run(space), n_trials=3)
    assert space.activation_of(study.trials[0]) == text
    assert study.trials[0].params["rate"] == 0.25
    if sampler not in ("TPE", "random"):
        assert len({trial.user_attrs["activation"] for trial in study.trials}) == 3


def test_other_values_may_be_left_out(space, features):
    """Those of the baselines count: a person compares functions, too."""
    study = new_study(space, features, defaults={"rate": 0.5})
    for text in ("swish(x)", "gelu(x)"):
        space.enqueue(study, text)
    study.optimize(run(space), n_trials=4)
    assert [trial.params["rate"] for trial in study.trials] == [0.5] * 4


def test_dotted_names_and_trials_that_are_there_already(space, features):
    study = new_study(space, features)
    for _ in range(2):
        space.enqueue(study, "gelu(x)", {"training.rate": 0.5}, skip_if_exists=True)
    assert len(study.trials) == 1
    assert study.trials[0].system_attrs["fixed_params"]["training.rate"] == 0.5


def test_slots_are_no_other_parameters(space, features):
    study = new_study(space, features)
    with pytest.raises(SearchError, match="got slots of the function itself, binary"):
        space.enqueue(study, "relu(x)", binary="add")
    assert not study.trials


def test_several_activations(space, features):
    study = new_study(space, features, activations=("early", "late"))
    space.enqueue(study, {"early": "relu(x)", "late": "gelu(x)"})
    space.enqueue(study, "swish(x)")
    space.enqueue(study, {"late": "erf(x)"})
    study.optimize(run(space, "early", "late"), n_trials=4)
    texts = [
        [space.activation_of(trial, name) for name in ("early", "late")] for trial in study.trials
    ]
    assert texts[:2] == [["relu(x)", "gelu(x)"], ["swish(x)", "swish(x)"]]
    assert texts[2][1] == "erf(x)"
    assert why(study, study.sampler, 0).activation.startswith("early: relu(x), late: gelu(x) with")
    with pytest.raises(ExpressionError, match="its functions are named early, late"):
        space.activation_of(study.trials[0])
    with pytest.raises(ExpressionError, match="no function named 'middle'"):
        space.activation_of(study.trials[0], "middle")
    with pytest.raises(SearchError, match=r"no activation 'earlly' \(did you mean 'early'\?\)"):
        space.enqueue(study, {"earlly": "relu(x)"})
    study.enqueue_trial({"schema": "unary(x)", "unary": "tanh"})
    with pytest.raises(SearchError, match="no activation ''; it has early, late"):
        study.ask()
    one = new_study(space, features)
    with pytest.raises(SearchError, match="no activation 'early'; it has one without"):
        space.enqueue(one, {"early": "relu(x)"})


def test_half_a_function_is_completed(space, features):
    """The slots that were left open are drawn, alike in any process."""

    def first() -> optuna.trial.FrozenTrial:
        study = new_study(space, features, seed=3)
        study.enqueue_trial({"binary": "mul", "left": "erf"})
        study.optimize(run(space), n_trials=3)
        assert len({trial.user_attrs["activation"] for trial in study.trials}) == 3
        return study.trials[0]

    trial = first()
    assert trial.params["schema"] == "binary(unary(x),unary(x))"
    assert (trial.params["binary"], trial.params["left"]) == ("mul", "erf")
    assert trial.user_attrs["proposal"] == {"by": "enqueued"}
    assert first().params == trial.params


def test_values_alone_leave_the_function_to_the_sampler(space, features):
    study = new_study(space, features)
    study.enqueue_trial({"rate": 0.125})
    study.optimize(run(space), n_trials=2)
    assert space.activation_of(study.trials[0]) == "relu(x)"
    assert [trial.params["rate"] for trial in study.trials] == [0.125] * 2


# --- before, during and after ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.db", "s.log"])
@pytest.mark.parametrize("options", [{}, {"parameters": RATE}, {"candidates": "trees"}])
def test_an_enqueued_trial_is_explained_at_any_time(space, features, tmp_path, name, options):
    if "candidates" not in options:
        options = {**options, "features": features}
    study = optuna.create_study(
        storage=open_storage(str(tmp_path / name)), sampler=ActivationSampler(space, **options)
    )
    study.optimize(run(space), n_trials=4)
    space.enqueue(study, "max(swish(x),swish(x))", rate=0.5)

    def said() -> tuple[str, str, int]:
        found = why(study, study.sampler, 4)
        return found.by, found.activation, found.explanation.observed

    assert said() == ("enqueued", "swish(x) with rate 0.5", 4)
    trial = study.ask()
    assert said() == ("enqueued", "swish(x) with rate 0.5", 4)
    assert trial.user_attrs["activation"] == "swish(x)"
    value = run(space)(trial)
    assert said() == ("enqueued", "swish(x) with rate 0.5", 4)
    study.tell(trial, value)
    assert said() == ("enqueued", "swish(x) with rate 0.5", 4)


def test_the_function_of_any_trial(space, features):
    study = new_study(space, features)
    study.optimize(run(space), n_trials=2)
    for trial in study.trials:
        assert space.activation_of(trial) == trial.user_attrs["activation"]
    fixed = FixedTrial({"schema": "unary(x)", "inner": "tanh", "unary": "tanh", "rate": 0.1})
    run(space)(fixed)
    assert space.activation_of(fixed) == "tanh(x)"
    began = study.ask()
    for trial in (began, study.trials[-1]):
        with pytest.raises(ExpressionError, match=r"trial 2 has no function of the space .* yet"):
            space.activation_of(trial)
    space.suggest(began)
    assert space.activation_of(study.trials[-1]) == space.activation_of(began)


# --- what means nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "relu(x)"}, "enqueue a function with space.enqueue(study, 'relu(x)')"),
        ({"activation": "relu(" * 999}, "..."),
        ({"binray": "add"}, "'binray', which is neither a slot of the space nor a parameter (did"),
        ({"Left": "relu"}, "(did you mean 'left'?)"),
        (
            {"left": "rellu"},
            "left = 'rellu', which is not a choice of that slot in the space 'small'",
        ),
        ({"left": "rellu"}, "(did you mean 'relu'?)"),
        (
            {"left": "ReLU"},
            "left = 'ReLU', which is not a choice of that slot in the space 'small' (did",
        ),
        ({"schema": "expression", "expression": "silu(x)"}, "(did you mean 'swish(x)'?)"),
        ({"expression": "relu(x)"}, "expression = 'relu(x)'"),
        (
            {"schema": "unary(x)", "left": "relu"},
            "no schema of the space 'small' has all of these slots",
        ),
        ({"binary": "add", "expression": "gelu(x)"}, "has all of these slots"),
        ({"rte": 0.1}, "'rte', which is neither a slot of the space nor a parameter (did you mean"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"parameters": RATE}])
def test_keys_that_mean_nothing(space, features, wrong, message, options):
    study = new_study(space, features, **options)
    study.optimize(run(space), n_trials=1)
    study.enqueue_trial(wrong)
    with pytest.raises(SearchError) as caught:
        study.optimize(run(space), n_trials=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert study.trials[1].state == TrialState.FAIL
    study.optimize(run(space), n_trials=2)  # the study goes on
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 2]


def test_a_slot_that_is_misspelt_in_the_very_first_trial(space, features):
    study = new_study(space, features)
    study.enqueue_trial({"binray": "add", "left": "relu", "right": "erf", "weight": 1})
    with pytest.raises(SearchError, match=r"did you mean 'binary'\?"):
        study.ask()


def test_a_parameter_that_no_trial_has_had_may_be_that_of_a_branch(space, features):
    study = new_study(space, features)
    study.optimize(run(space), n_trials=1)
    space.enqueue(study, "gelu(x)", momentum=0.5)

    def branch(trial: optuna.Trial) -> float:
        space.suggest(trial)
        return trial.suggest_float("momentum", 0, 1)

    study.optimize(branch, n_trials=1)
    assert study.trials[1].params["momentum"] == 0.5
    space.enqueue(study, "swish(x)", nesterov=True)
    with pytest.warns(
        UserWarning, match="enqueued with nesterov, which the objective did not request"
    ):
        study.optimize(branch, n_trials=1)


def test_a_parameter_that_was_not_named_beforehand(space, features):
    study = new_study(space, features, parameters=RATE)
    with pytest.raises(SearchError, match=r"'momentum', which is neither .* known: .*rate"):
        space.enqueue(study, "gelu(x)", momentum=0.5)


@pytest.mark.parametrize("text", ["rellu(x)", "relu(", "", "sinh(x)", "relu(x) + tanh(x)"])
def test_what_is_no_function_of_the_space(space, features, text):
    study = new_study(space, features)
    with pytest.raises(ExpressionError):
        space.enqueue(study, text)
    assert not study.trials


# --- spaces without a list ------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Space:
    return load_space("six_operators")


@pytest.mark.parametrize("text", ["relu(x)", "tanh(mul(x,sigmoid(x)))", "mul(sigmoid(tanh(x)),x)"])
def test_a_function_of_a_space_that_cannot_be_listed(large, text):
    number = large.find(parse(text))
    assert number is not None
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    large.enqueue(study, text)
    study.optimize(lambda trial: len(str(large.suggest(trial).expression)), n_trials=1)
    (trial,) = study.trials
    assert large.number(trial.params) == number


def test_every_expression_is_found(act_bench):
    numbers = range(0, len(act_bench), 37)
    for number in numbers:
        assert act_bench.find(act_bench.expression(number)) is not None
    assert act_bench.find(parse("exp(exp(exp(x)))")) is None


# --- studies of a file ----------------------------------------------------------------------


def test_a_study_file_goes_on_with_what_is_enqueued(bo_act, tmp_path, monkeypatch):
    """By hand, from another program, whose study knows nothing of our sampler."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "classic"\ntrials = 4\n'
        + TASK
        + "[features]\nfim = false\n[confirm]\nseeds = 0\n"
        + '[parameters]\n"training.learning_rate" = { low = 0.001, high = 1.0, log = true }\n'
    )
    assert bo_act("run", "s.toml", "--quiet")[0] == 0
    spec = read_study("s.toml")
    study = load_study(spec)
    rates = {trial.params["training.learning_rate"] for trial in study.trials[:3]}
    assert rates == {spec.training.learning_rate}  # of the baselines
    classic = load_space("classic")
    classic.enqueue(study, "nn.SELU", **{"training.learning_rate": 0.25})
    classic.enqueue(study, "gelu")
    study.enqueue_trial({"activation": "relu(x)"})
    code, _, err = bo_act("run", "s.toml", "--quiet", "--set", "trials=7")
    assert code == 2
    assert "space.enqueue(study, 'relu(x)')" in " ".join(err.split())
    code, _, _ = bo_act("run", "s.toml", "--quiet", "--set", "trials=7")
    assert code == 0
    trials = load_study(spec).trials
    assert [trial.state.name for trial in trials] == [*["COMPLETE"] * 6, "FAIL", "COMPLETE"]
    assert [classic.activation_of(trial) for trial in trials[4:6]] == ["selu(x)", "gelu(x)"]
    assert [trial.params["training.learning_rate"] for trial in trials[4:6]] == [
        0.25,
        spec.training.learning_rate,
    ]
    code, out, _ = bo_act("why", "s.toml", "4")
    assert code == 0
    assert "by you (enqueued)" in out

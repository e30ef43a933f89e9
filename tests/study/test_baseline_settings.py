"""All baselines of a study are evaluated with the same values of its other parameters."""

from __future__ import annotations

import threading

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import GPSampler, RandomSampler, TPESampler

from bo_act import ActivationSampler, read_study
from bo_act.errors import SearchError, SpecError
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.search.strategies import RandomSearch
from bo_act.spaces.space import Space, load_space
from bo_act.study.storage.opening import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)

OTHERS = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "depth": IntDistribution(2, 8, step=2),
    "kind": CategoricalDistribution(("sgd", "adam", None)),
}


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("classic")


@pytest.fixture(scope="module")
def features(space) -> FeatureTable:
    return compute_features(space)


def ask(trial: optuna.Trial) -> dict:
    return {
        "rate": trial.suggest_float("rate", 1e-4, 1.0, log=True),
        "depth": trial.suggest_int("depth", 2, 8, step=2),
        "kind": trial.suggest_categorical("kind", ("sgd", "adam", None)),
    }


def objective(space: Space, *names: str):
    def run(trial: optuna.Trial) -> float:
        for name in names or ("",):
            space.suggest(trial, name)
        return -abs(ask(trial)["rate"] - 0.01)

    return run


def settings_of_baselines(study: optuna.Study) -> list[dict]:
    return [
        {name: trial.params[name] for name in OTHERS if name in trial.params}
        for trial in study.trials
        if trial.user_attrs["proposal"]["by"] == "baseline"
    ]


SAMPLERS = {
    "learnt": {},
    "named": {"parameters": OTHERS},
    "TPE": {"delegate": TPESampler(seed=3)},
    "multivariate": {"delegate": TPESampler(seed=3, multivariate=True, n_startup_trials=1)},
    "random": {"delegate": RandomSampler(seed=3)},
    "GP": {"delegate": GPSampler(seed=3, n_startup_trials=1)},
    "strategy": {"strategy": RandomSearch()},
    "several": {"activations": ("early", "late")},
    "trees": {"candidates": "trees"},
}


@pytest.mark.parametrize("defaults", [{}, {"rate": 0.5}, {"rate": 0.5, "depth": 4, "kind": None}])
@pytest.mark.parametrize("how", SAMPLERS)
def test_baselines_share_one_setting(space, features, how, defaults):
    options = dict(SAMPLERS[how])
    if how != "trees":
        options["features"] = features
    names = options.get("activations", ())
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, defaults=defaults, seed=5, **options)
    )
    count = len(space.baselines)
    study.optimize(objective(space, *names), n_trials=count + 4)
    found = settings_of_baselines(study)
    assert len(found) == count
    assert found == [found[0]] * count
    assert {name: found[0][name] for name in defaults} == defaults
    # The rest has settings of its own.
    assert len({trial.params["rate"] for trial in study.trials[count:]}) > 1


def test_another_seed_draws_another_setting(space, features):
    rates = set()
    for seed in range(4):
        sampler = ActivationSampler(space, features=features, seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective(space), n_trials=1)
        rates.add(study.trials[0].params["rate"])
    assert len(rates) == 4


def test_baselines_that_begin_at_once_share_it(space, features):
    """None of them has asked for its rate when the others are given their functions."""
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    together = threading.Barrier(3, timeout=60)

    def run(trial: optuna.Trial) -> float:
        space.suggest(trial)
        together.wait()
        return ask(trial)["rate"]

    study.optimize(run, n_trials=3, n_jobs=3)
    found = settings_of_baselines(study)
    assert found == [found[0]] * 3
    assert len({trial.user_attrs["activation"] for trial in study.trials}) == 3


def test_a_baseline_that_has_asked_for_nothing_is_pending(space, features):
    """The first trial has ended, so that parameters are known; the second has begun before."""
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    first, second = study.ask(), study.ask()
    for trial in (first, second):
        space.suggest(trial)
    ask(first)
    study.tell(first, 0.5)
    third = study.ask()
    space.suggest(third)
    texts = [trial.user_attrs["activation"] for trial in (first, second, third)]
    assert len(set(texts)) == 3
    assert ask(second) == ask(third) == {name: first.params[name] for name in OTHERS}


@pytest.mark.parametrize("name", ["s.db", "s.log"])
def test_a_resumed_study_shares_it(space, features, tmp_path, name):
    for _ in range(3):
        study = optuna.create_study(
            study_name="s",
            storage=open_storage(str(tmp_path / name)),
            sampler=ActivationSampler(space, features=features),
            load_if_exists=True,
        )
        study.optimize(objective(space), n_trials=1)
    found = settings_of_baselines(study)
    assert found == [found[0]] * 3


def test_the_first_baseline_counts_whoever_chose_its_values(space, features):
    """Of an older study, or enqueued: the others are compared with it."""
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    space.enqueue(study, str(space.baselines[0]), {"rate": 0.125})
    study.optimize(objective(space), n_trials=3)
    assert [trial.params["rate"] for trial in study.trials] == [0.125] * 3
    assert len({trial.params["depth"] for trial in study.trials}) == 1


def test_parameters_of_some_branch(space, features):
    """A parameter that only some trials ask for is shared by those that do."""
    study = optuna.create_study(
        direction="maximize",
        sampler=ActivationSampler(space, features=features, defaults={"momentum": 0.25}),
    )

    def run(trial: optuna.Trial) -> float:
        space.suggest(trial)
        if trial.number % 2:
            return trial.suggest_float("momentum", 0.0, 1.0) + trial.suggest_float("decay", 0, 1)
        return trial.suggest_float("rate", 0.0, 1.0)

    with pytest.warns(UserWarning, match="defaults momentum, which the objective did not request"):
        study.optimize(run, n_trials=4)
    assert [trial.params.get("momentum") for trial in study.trials] == [None, 0.25, None, 0.25]
    for name, trials in (("rate", study.trials[::2]), ("decay", study.trials[1::2])):
        assert len({trial.params[name] for trial in trials}) == 1


def test_a_range_that_changes_keeps_what_is_in_it(space, features):
    sampler = ActivationSampler(space, features=features)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    lows = iter([0.0, 0.0, 2.0])

    def run(trial: optuna.Trial) -> float:
        space.suggest(trial)
        return trial.suggest_float("rate", low := next(lows), low + 1)

    study.optimize(run, n_trials=3)
    first, second, third = (trial.params["rate"] for trial in study.trials)
    assert first == second
    assert third >= 2


def test_brackets_share_it(space, features):
    study = optuna.create_study(
        direction="maximize",
        sampler=ActivationSampler(space, features=features),
        pruner=HyperbandPruner(),
    )
    study.optimize(objective(space), n_trials=4)
    found = settings_of_baselines(study)
    assert found == [found[0]] * len(found)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"rte": 0.1}, "unknown parameter 'rte' (did you mean 'rate'?)"),
        ({"momentum": 0.9}, "unknown parameter 'momentum'; known: rate, depth, kind"),
        ({"rate": 5.0}, "rate = 5.0 is not in FloatDistribution(high=1.0, log=True, low=0.0001"),
        ({"rate": "fast"}, "rate = 'fast' is not in Float"),
        ({"rate": float("nan")}, "rate = nan is not in Float"),
        ({"depth": 3}, "depth = 3 is not in Int"),
        ({"kind": "sdg"}, "kind = 'sdg' is not in Categorical"),
        ({"expression": "relu(x)"}, "'expression' is a slot of the functions"),
    ],
)
def test_defaults_that_mean_nothing(space, features, defaults, message):
    with pytest.raises(SearchError) as caught:
        ActivationSampler(space, features=features, parameters=OTHERS, defaults=defaults)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"rte": 0.1}, r"unknown parameter 'rte' \(did you mean 'rate'\?\)"),
        ({"rate": 5.0}, "rate = 5.0 is not in Float"),
        ({"kind": "sdg"}, "kind = 'sdg' is not in Categorical"),
        ({"fixed": 4}, "fixed = 4 is not in Int"),
    ],
)
@pytest.mark.filterwarnings("ignore:the sampler was given as defaults rte")
def test_defaults_that_mean_nothing_as_trials_show(space, features, defaults, message):
    sampler = ActivationSampler(space, features=features, defaults=defaults)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def run(trial: optuna.Trial) -> float:
        trial.suggest_int("fixed", 3, 3)
        return objective(space)(trial)

    with pytest.raises(SearchError, match=message):
        study.optimize(run, n_trials=3)


def test_a_value_of_a_study_file_has_to_lie_on_the_steps(tmp_path):
    file = tmp_path / "s.toml"
    text = (
        'name = "s"\nspace = "classic"\n[model]\nname = "mlp"\noptions = {{ width = {} }}\n[data]\n'
        'name = "digits"\n[parameters]\n'
        '"model.options.width" = {{ low = 32, high = 128, step = 32 }}'
    )
    file.write_text(text.format(96))
    assert read_study(str(file)).defaults == {"model.options.width": 96}
    file.write_text(text.format(100))
    with pytest.raises(
        SpecError, match=r"width = 100 in this file, .* is outside the searched values"
    ):
        read_study(str(file))

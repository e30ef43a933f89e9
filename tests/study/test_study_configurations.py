"""Studies whose trials ask for several activations, or for other parameters beside them."""

from __future__ import annotations

import json
import multiprocessing
import warnings

import numpy as np
import optuna
import pytest
import torch
from made_up import TASK
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler

from bo_act import ActivationSampler, EmbeddingSampler, improvement_left, load_space, why
from bo_act.activations.expressions import parse
from bo_act.errors import SearchError, SpecError
from bo_act.features.compute import compute_features
from bo_act.spaces.space import Space
from bo_act.specs.files import read_study
from bo_act.study.results.confirmation import FRESH
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

RATE = {"rate": FloatDistribution(0.0, 1.0)}


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("classic")


@pytest.fixture(scope="module")
def features(space):
    return compute_features(space)


def made_up(space: Space, trial: optuna.Trial) -> float:
    index = space.catalogue.index(str(space.suggest_expression(trial)))
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    kind = trial.suggest_categorical("kind", ["sgd", "adam"])
    return np.sin(index) - (np.log10(rate) + 2) ** 2 - 0.3 * (kind == "adam")


def test_other_parameters_are_found_from_the_trials(space, features):
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    study.optimize(lambda trial: made_up(space, trial), n_trials=30)
    best = study.best_trial
    assert best.params["kind"] == "sgd"
    assert abs(np.log10(best.params["rate"]) + 2) < 0.3
    ways = [trial.user_attrs["proposal"]["by"] for trial in study.trials]
    assert ways.count("acquisition") >= 15
    said = why(study, study.sampler, 29)
    assert "rate" in said.activation
    assert said.explanation is not None
    assert len(said.neighbours) == 5
    assert {"rate", "kind"} <= set(said.explanation.contributions)
    assert 0 <= improvement_left(study, study.sampler) < 10


def test_a_resumed_study_goes_on_as_an_undisturbed_one(space, features):
    def fresh() -> ActivationSampler:
        return ActivationSampler(
            space,
            features=features,
            seed=4,
            parameters={
                "rate": FloatDistribution(1e-4, 1.0, log=True),
                "kind": CategoricalDistribution(("sgd", "adam")),
            },
            defaults={"rate": 0.1, "kind": "adam"},
        )

    whole = optuna.create_study(direction="maximize", sampler=fresh())
    whole.optimize(lambda trial: made_up(space, trial), n_trials=14)
    assert whole.trials[0].params["rate"] == pytest.approx(0.1)
    assert whole.trials[0].params["kind"] == "adam"
    parts = optuna.create_study(direction="maximize")
    for _ in range(14):
        parts.sampler = fresh()
        parts.optimize(lambda trial: made_up(space, trial), n_trials=1)
    assert [t.params for t in parts.trials] == [t.params for t in whole.trials]


def test_several_activations(space, features):
    names = ("stage1", "stage2")
    study = optuna.create_study(
        direction="maximize",
        sampler=ActivationSampler(space, features=features, activations=names),
    )

    def objective(trial: optuna.Trial) -> float:
        first, second = (
            space.catalogue.index(str(space.suggest(trial, name).expression)) for name in names
        )
        return float(np.sin(first) - np.sin(second))

    study.optimize(objective, n_trials=14)
    assert len({(t.params["stage1.expression"], t.params["stage2.expression"])
                for t in study.trials}) == 14  # fmt: skip
    for trial in study.trials:
        for name in names:
            text = trial.user_attrs[f"{name}.activation"]
            assert space.catalogue.index(text) == trial.user_attrs[f"{name}.index"]
            assert str(space.suggest(trial, name).expression) == text
    said = why(study, study.sampler, 13)
    assert said.activation.startswith("stage1: ")


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_was_expected_is_said_in_units_of_the_value(space, features, direction):
    """Below the best so far, or above it where less is better, and near what then came."""
    sign = 1.0 if direction == "maximize" else -1.0
    sampler = ActivationSampler(space, features=features, seed=3)
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(lambda trial: 100 + sign * made_up(space, trial), n_trials=22)
    seen: list[float] = []
    errors = []
    for trial in study.trials:
        said = trial.user_attrs["proposal"]
        assert ("expected" in said) == (said["by"] == "acquisition")
        if "expected" in said:
            assert min(seen) - 1e-4 <= said["expected"] <= max(seen) + 1e-4
            errors.append(abs(said["expected"] - trial.value))
        seen.append(trial.value)
    assert len(errors) > 8
    assert np.median(errors) < np.median(np.abs(np.array(seen) - np.median(seen)))


def test_an_activation_that_the_sampler_does_not_know(space, features):
    study = optuna.create_study(sampler=ActivationSampler(space, features=features))
    with pytest.raises(SearchError, match=r"activations=\(\.\.\., 'stage1'\)"):
        study.optimize(lambda trial: float(bool(space.suggest(trial, "stage1"))), n_trials=1)
    for names in [(), ("a", "a"), ("", "a")]:
        with pytest.raises(SearchError, match="a different name for each"):
            ActivationSampler(space, features=features, activations=names)


def test_a_delegate_samples_the_others_apart(space, features):
    class Counting(RandomSampler):
        asked = 0

        def sample_independent(self, *arguments):
            self.asked += 1
            return super().sample_independent(*arguments)

    delegate = Counting(seed=0)
    study = optuna.create_study(
        direction="maximize",
        sampler=ActivationSampler(space, features=features, delegate=delegate),
    )
    study.optimize(lambda trial: made_up(space, trial), n_trials=12)
    assert delegate.asked == 2 * (12 - len(space.baselines))
    assert len({trial.params[name] for trial in study.trials for name in ["expression"]}) == 12


def work(url: str, trials: int) -> None:
    torch.set_num_threads(1)
    space = load_space("classic")
    study = optuna.load_study(
        study_name="shared", storage=url, sampler=ActivationSampler(space, delegate=None)
    )
    study.optimize(lambda trial: made_up(space, trial), n_trials=trials)


@pytest.mark.slow
def test_workers_take_different_configurations(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(study_name="shared", storage=url, direction="maximize")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(url, 8)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trials = optuna.load_study(study_name="shared", storage=url).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 16
    assert len({json.dumps(t.params, sort_keys=True) for t in trials}) == 16


@pytest.mark.slow
def test_it_beats_sampling_apart(act_bench):
    """The best rate depends on the function, which a delegate cannot see."""
    features = compute_features(act_bench)
    places = ActivationSampler(act_bench, features=features).embedding.points

    def objective(trial: optuna.Trial) -> float:
        place = places[act_bench.catalogue.index(str(act_bench.suggest_expression(trial)))]
        rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
        return place[1] - (np.log10(rate) + 3.5 - 3 * place[0]) ** 2

    def best(seed: int, **options) -> float:
        sampler = ActivationSampler(act_bench, features=features, seed=seed, **options)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective, n_trials=30)
        return study.best_value

    together = [best(seed) for seed in range(3)]
    apart = [best(seed, delegate=TPESampler(seed=seed)) for seed in range(3)]
    assert np.mean(together) > np.mean(apart)


@pytest.mark.parametrize("names", [("",), ("stage1", "stage2")])
def test_why_knows_the_pruned_ones(space, features, names):
    """They are no neighbours, as they have no value, however near they are."""
    sampler = ActivationSampler(space, features=features, activations=names, parameters=RATE)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        indices = [space.catalogue.index(space.suggest(trial, name).expression) for name in names]
        found = float(np.sin(indices).sum() - trial.suggest_float("rate", 0, 1))
        if trial.number % 3 == 2:
            raise optuna.TrialPruned
        return found

    study.optimize(objective, n_trials=16)
    values = {trial.value for trial in study.trials} - {None}
    for number in (12, 13, 14, 15):
        said = why(study, sampler, number).as_json()
        assert len(said["neighbours"]) == 5
        assert {one["value"] for one in said["neighbours"]} <= values


@pytest.mark.parametrize(("trials", "done"), [(40, 18), (12, 12)])
def test_a_study_ends_when_no_configuration_is_left(trials, done):
    """Of parameters with few values there are few configurations."""
    sampler = EmbeddingSampler(
        np.random.default_rng(0).uniform(size=(3, 2)),
        parameters={"kind": CategoricalDistribution(("a", "b")), "depth": IntDistribution(1, 3)},
    )
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        item = sampler.suggest(trial)
        return item * trial.suggest_int("depth", 1, 3) + len(
            trial.suggest_categorical("kind", ["a", "b"])
        )

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        study.optimize(objective, n_trials=trials)
    assert len({json.dumps(trial.params) for trial in study.trials}) == done
    assert len(study.trials) == done
    assert any("every" in str(one.message) for one in said) == (trials > done)
    assert sampler.remaining(study) == 18 - done


# --- study files ----------------------------------------------------------------------------

STUDY = (
    f"""
name = "rates"
space = "classic"
storage = "rates.log"
trials = 16
{TASK}"""
    + """learning_rate = 0.05
batch_size = 32
[features]
fim = false
[parameters]
"training.learning_rate" = { low = 0.001, high = 1.0, log = true }
"training.optimizer" = { choices = ["sgd", "adamw"] }
"training.batch_size" = { low = 16, high = 64, step = 16 }
[confirm]
top = 2
seeds = 2
baselines = ["tanh(x)"]
"""
)


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rates.toml"
    path.write_text(STUDY)
    return path


def test_a_study_file_with_parameters(study_file, bo_act):
    spec = read_study(str(study_file))
    result = run_study(spec)
    trials = load_study(spec).trials
    assert len(trials) == 16
    assert trials[0].params["training.learning_rate"] == pytest.approx(0.05)
    assert trials[0].params["training.optimizer"] == "sgd"
    assert {t.params["training.batch_size"] for t in trials} <= {16, 32, 48, 64}
    assert len({t.params["training.learning_rate"] for t in trials}) > 8
    assert result.best is not None
    best = trials[result.best.trial]
    assert dict(result.best.settings) == {k: best.params[k] for k in spec.parameters}
    first = result.confirmed[0]
    confirmed = {row.activation: row for row in result.confirmed}
    relu, tanh = confirmed["relu(x)"], confirmed["tanh(x)"]
    assert first.settings == result.best.settings
    assert relu.tried >= 1
    assert tanh.tried >= 1
    # Fresh seeds, with the settings of the best trial.
    task = Task.load(spec)
    again = [
        task.train(task.space.suggest_expression(best), seed=FRESH + seed, settings=first.settings)[
            1
        ].value
        for seed in range(2)
    ]
    assert first.validation.mean == pytest.approx(np.mean(again), abs=1e-12)
    assert read_result(spec) == result
    code, out, _ = bo_act("best", str(study_file))
    assert code == 0
    assert "learning_rate" in out
    assert "tuned on its own" in " ".join(out.split())
    code, out, _ = bo_act("why", str(study_file), "15")
    assert code == 0
    assert "training.learning_rate" in out


def test_settings_are_trained_with(study_file):
    """The value of a trial is that of its settings, measured by a study with them in the file."""
    spec = read_study(str(study_file), {"trials": "14", "confirm.seeds": "0"})
    run_study(spec)
    trial = load_study(spec).trials[-1]
    lines = [line for line in study_file.read_text().splitlines() if '"training.' not in line]
    text = "\n".join(lines).replace("[parameters]", "")
    for key, value_ in trial.params.items():
        if key.startswith("training."):
            name = key.removeprefix("training.")
            text = "\n".join(
                line for line in text.splitlines() if not line.startswith(f"{name} =")
            ).replace("[training]", f"[training]\n{name} = {json.dumps(value_)}")
    study_file.with_name("alone.toml").write_text(text.replace('"rates"', '"alone"'))
    alone = read_study("alone.toml")
    assert not alone.parameters
    task = Task.load(alone)
    _, measured = task.train(task.space.suggest_expression(trial), seed=alone.seed)
    assert measured.value == trial.value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"training.rate" = { low = 1, high = 2 }', "cannot be searched"),
        ('"training.threads" = { low = 1, high = 2 }', "cannot be searched"),
        ('"data.train" = { low = 1, high = 2 }', "expected 'training.NAME' or 'model"),
        ('"model.options.depth" = { low = 1, high = 2 }', "give depth a value in"),
        ('"training.momentum" = { low = 0.1, high = 0.5 }', "is outside the searched values"),
        ('"training.momentum" = { low = 0.5, high = 1.5 }', "momentum"),
        ('"training.momentum" = { low = 0.9, high = 0.1 }', "expected low < high"),
        ('"training.momentum" = { low = 0.9 }', "expected low and high, or choices"),
        ('"training.momentum" = { low = 0, high = 0.9, log = true }', "expected low > 0"),
        ('"training.momentum" = { low = 0.1, high = 0.9, step = 2 }', "expected 0 < step"),
        ('"training.momentum" = { low = 0.1, high = 0.95, choices = [1] }', "got both"),
        ('"training.schedule" = { choices = ["constant"] }', "two different choices"),
    ],
)
def test_parameters_that_cannot_be_searched(study_file, line, message):
    study_file.write_text(study_file.read_text().replace("[parameters]", f"[parameters]\n{line}"))
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        read_study(str(study_file))


def test_parameters_need_a_model(study_file):
    with pytest.raises(SpecError, match="only the strategy 'model'"):
        read_study(str(study_file), {"strategy.name": "random"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("acquisition.per_second", "true"),
        ("acquisition.name", "hypervolume"),
        ("acquisition.name", "knowledge_gradient"),
    ],
)
def test_parameters_cannot_be_listed(study_file, key, value):
    with pytest.raises(SpecError, match=r"needs a list of all .* when parameters are searched"):
        read_study(str(study_file), {key: value})


def test_a_function_is_given_up_after_its_retries(space, features):
    sampler = ActivationSampler(space, features=features, parameters=RATE, max_retries=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for number, failures in enumerate([1, 2]):
        params = space.catalogue.params(number)
        for rate in np.linspace(0.1, 0.9, failures):
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL,
                    params={**params, "rate": rate},
                    distributions={**space.slots(), **RATE},
                )
            )
    view = sampler.view(study)
    assert view.observations.closed == {(1,)}
    assert view.number == 0  # lost trials are none


def test_a_baseline_is_confirmed_with_the_best_settings_it_was_tried_with(study_file):
    from bo_act.study.results.confirmation import _best_of

    spec = read_study(str(study_file))
    study = optuna.create_study(direction="maximize")
    for rate, value_ in [(0.01, 0.5), (0.1, 0.9), (0.5, 0.7)]:
        trial = optuna.trial.create_trial(
            value=value_,
            params={"training.learning_rate": rate},
            distributions={"training.learning_rate": FloatDistribution(0.001, 1, log=True)},
            user_attrs={"activation": "tanh(x)"},
        )
        study.add_trial(trial)
    assert _best_of(parse("tanh(x)"), spec, study, {}).settings == {"training.learning_rate": 0.1}
    assert _best_of(parse("relu(x)"), spec, study, {}).settings == spec.defaults

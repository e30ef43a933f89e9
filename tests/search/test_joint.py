"""Functions searched together with other parameters, and several functions at once."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, TASK, smooth
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler

from bo_act import ActivationSampler, improvement_left, load_space, why
from bo_act.activations.expressions import parse
from bo_act.activations.space import Space
from bo_act.errors import SearchError, SpecError
from bo_act.features.compute import compute_features
from bo_act.search.acquisition.pool import make_scorer, score_pool
from bo_act.search.configurations import Configurations
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.joint import JointObservations, JointSearcher
from bo_act.search.parameters import Parameters
from bo_act.search.searcher import fit_points
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.specs.files import read_study
from bo_act.study.results.confirmation import FRESH
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.trials import StudyView
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

MIXED = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "depth": IntDistribution(2, 8, step=3),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "dropout": FloatDistribution(0.0, 0.5, step=0.1),
    "fixed": IntDistribution(3, 3),
}
RATE = {"rate": FloatDistribution(0.0, 1.0)}


# --- parameters -----------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_every_drawn_point_is_one_that_is_allowed(seed):
    parameters = Parameters(MIXED)
    generator = np.random.default_rng(seed)
    points = parameters.draw(16, generator)
    near = parameters.near(points[3], 16, generator)
    for point in [*points, *near]:
        values = parameters.decode(point)
        assert set(values) == {"rate", "depth", "kind", "dropout"}
        for name, value in values.items():
            assert MIXED[name]._contains(MIXED[name].to_internal_repr(value)), (name, value)
        np.testing.assert_allclose(parameters.encode(values), point, atol=1e-9)
        assert (point >= 0).all()
        assert (point <= 1).all()


def test_coordinates_of_parameters():
    parameters = Parameters(MIXED)
    assert parameters.width == 1 + 1 + 3 + 1
    values = {"rate": 0.01, "depth": 5, "kind": "b", "dropout": 0.0}
    place = parameters.encode(values)
    assert place[parameters.blocks["rate"]] == pytest.approx([0.5])
    assert place[parameters.blocks["kind"]] == pytest.approx([0, 1 / np.sqrt(2), 0])
    other = parameters.encode(values | {"kind": "c"})
    assert np.linalg.norm(place - other) == pytest.approx(1)  # as far as the ends of a range
    beyond = parameters.encode(values | {"rate": 10.0})
    assert beyond[parameters.blocks["rate"]] == [1.0]
    with pytest.raises(ValueError, match="z"):
        parameters.encode(values | {"kind": "z"})


def test_draws_are_spread_and_steps_are_near():
    parameters = Parameters(RATE)
    drawn = parameters.draw(64, np.random.default_rng(0))[:, 0]
    assert np.diff(np.sort(np.append(drawn, [0, 1]))).max() < 3 / 64
    near = parameters.near(np.array([0.5]), 64, np.random.default_rng(0))[:, 0]
    assert np.median(abs(near - 0.5)) < 0.15
    assert (abs(near - 0.5) > 0.15).any()


def test_no_parameters_are_no_coordinates():
    none = Parameters({"fixed": MIXED["fixed"]})
    assert none.width == 0
    assert none.draw(3, np.random.default_rng(0)).shape == (3, 0)
    assert none.decode(none.encode({})) == {}


# --- the searcher ---------------------------------------------------------------------------


def cloud(count: int = 120) -> Embedding:
    valid = np.ones(count, dtype=bool)
    valid[7] = False
    return Embedding(np.where(valid[:, None], CLOUD[:count], np.nan), BLOCKS, valid)


def value(functions: np.ndarray, settings: np.ndarray) -> np.ndarray:
    """Depends on both, and the best rate on the function."""
    quality = smooth(CLOUD[functions[:, 0]])
    wanted = 0.2 + 0.6 * CLOUD[functions[:, 0], 0]
    return quality - 6 * (settings[:, 0] - wanted) ** 2


def none_yet(places: int, width: int) -> Configurations:
    return Configurations(np.empty((0, places), dtype=np.int64), np.empty((0, width)))


def search(searcher: JointSearcher, trials: int, objective=value, embedding=None):
    embedding = embedding or cloud()
    places, width = len(searcher.activations), searcher.parameters.width
    done, ways = none_yet(places, width), []
    for number in range(trials):
        observations = JointObservations(
            done, objective(done.functions, done.settings), none_yet(places, width)
        )
        proposal = searcher.propose(
            embedding, observations, pending=none_yet(places, width), number=number
        )
        one = Configurations(np.array([proposal.functions]), proposal.settings[None])
        done = Configurations.join(done, one)
        ways.append(proposal.by)
    return done, ways


def test_function_and_rate_are_found_together():
    everything = max(
        value(np.array([[i]]), np.array([[0.2 + 0.6 * CLOUD[i, 0]]]))[0]
        for i in range(120)
        if i != 7
    )
    gaps = []
    for baselines in [(3, 4), (5, 6), (10, 11)]:
        searcher = JointSearcher(("",), Parameters(RATE), baselines=baselines)
        done, ways = search(searcher, 25)
        assert ways == ["baseline"] * 2 + ["random"] * 2 + ["acquisition"] * 21
        assert 7 not in done.functions  # it has no place
        gaps.append(everything - value(done.functions, done.settings).max())
    assert np.median(gaps) < 0.02  # one search can stay at the second best function
    again, _ = search(searcher, 10)
    np.testing.assert_array_equal(done.settings[:10], again.settings)
    np.testing.assert_array_equal(done.functions[:10], again.functions)


def test_baselines_have_the_same_settings():
    parameters = Parameters(RATE)
    given_values = JointSearcher(("",), parameters, np.array([0.25]), baselines=(3, 4))
    assert search(given_values, 2)[0].settings.tolist() == [[0.25], [0.25]]
    drawn = search(JointSearcher(("",), parameters, baselines=(3, 4)), 2)[0].settings
    assert drawn[0, 0] == drawn[1, 0]


def test_two_activations_are_chosen_together():
    def both(functions: np.ndarray, settings: np.ndarray) -> np.ndarray:
        del settings
        first, second = smooth(CLOUD[functions[:, 0]]), smooth(CLOUD[functions[:, 1]])
        # The second is wanted small where the first is large: no place is best on its own.
        return first - second

    searcher = JointSearcher(("stage1", "stage2"), Parameters({}), baselines=(3,))
    done, _ = search(searcher, 35, both)
    assert done.functions[0].tolist() == [3, 3]
    quality = np.delete(smooth(CLOUD), 7)
    reached = both(done.functions, done.settings).max()
    assert reached > 0.9 * np.ptp(quality)
    assert len({tuple(row) for row in done.functions.tolist()}) == 35


def test_the_climb_finds_what_an_exhaustive_search_finds():
    parameters = Parameters({"kind": CategoricalDistribution(("a", "b", "c"))})
    places = np.array([parameters.encode({"kind": kind}) for kind in "abc"])
    generator = np.random.default_rng(1)
    functions = generator.choice(np.delete(np.arange(120), 7), size=(20, 1))
    settings = places[generator.integers(3, size=20)]
    values = smooth(CLOUD[functions[:, 0]]) + settings[:, 1]
    spec = AcquisitionSpec(name="ucb", beta=2.0)
    searcher = JointSearcher(("",), parameters, initial=0, acquisition=spec)
    observations = JointObservations(Configurations(functions, settings), values, none_yet(1, 3))
    proposal = searcher.propose(cloud(), observations, pending=none_yet(1, 3), number=0)
    # All configurations, one by one.
    tried = {(int(f), tuple(s)) for (f,), s in zip(functions, settings, strict=True)}
    every = [
        (i, kind)
        for i in range(120)
        for kind in range(3)
        if i != 7 and (i, tuple(places[kind])) not in tried
    ]
    points = torch.tensor(np.array([[*CLOUD[i], *places[kind]] for i, kind in every]))
    x = torch.tensor(np.column_stack([CLOUD[functions[:, 0]], settings]))
    nothing = torch.empty(0, 7, dtype=torch.float64)
    model, y, _ = fit_points(
        SurrogateSpec(), x, values, {**BLOCKS, "kind": slice(4, 7)},
        pending=nothing, pruned=nothing, seed=0,
    )  # fmt: skip
    scores = score_pool(spec, model, points, float(y.max()))
    index, kind = every[int(scores.argmax())]
    assert proposal.functions == (index,)
    assert proposal.settings.tolist() == places[kind].tolist()
    assert proposal.score == pytest.approx(float(scores.max()), abs=1e-9)


@pytest.mark.parametrize("name", ["max_value_entropy", "ucb", "log_ei", "log_nei", "thompson"])
def test_scores_of_different_calls_compare(name):
    x = torch.from_numpy(CLOUD[:25].copy())
    nothing = torch.empty(0, 4, dtype=torch.float64)
    model, y, _ = fit_points(
        SurrogateSpec(), x, smooth(CLOUD[:25]), BLOCKS, pending=nothing, pruned=nothing, seed=0
    )
    points = torch.from_numpy(CLOUD[25:].copy())
    spec = AcquisitionSpec(name=name)
    with torch.no_grad():
        score = make_scorer(spec, model, float(y.max()), pool=points, seed=5)
        whole = score(points)
        parts = torch.cat([score(points[:1]), score(points[1:40]), score(points[40:])])
        listed = score_pool(spec, model, points, float(y.max()), seed=5)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(listed, whole, rtol=1e-9, atol=1e-9)


def test_what_was_given_up_or_is_pending_is_not_proposed():
    parameters = Parameters({"kind": CategoricalDistribution(("a", "b"))})
    embedding = cloud(9)
    seen = Configurations(np.array([[0], [1]]), parameters.draw(2, np.random.default_rng(0)))
    observations = JointObservations(
        seen, np.array([0.0, 1.0]), none_yet(1, 2), frozenset({(2,), (3,)})
    )
    searcher = JointSearcher(("",), parameters, initial=0)
    pending = none_yet(1, 2)
    for number in range(10):  # 8 functions of 2 kinds each, 2 given up, 2 seen
        proposal = searcher.propose(embedding, observations, pending=pending, number=number)
        one = Configurations(np.array([proposal.functions]), proposal.settings[None])
        pending = Configurations.join(pending, one)
    rows = [(f[0], *s) for f, s in zip(pending.functions, pending.settings, strict=True)]
    assert len(set(rows)) == 10
    assert not {2, 3, 7} & {row[0] for row in rows}


# --- inside Optuna --------------------------------------------------------------------------


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
    whole.optimize(lambda trial: made_up(space, trial), n_trials=24)
    assert whole.trials[0].params["rate"] == pytest.approx(0.1)
    assert whole.trials[0].params["kind"] == "adam"
    parts = optuna.create_study(direction="maximize")
    for _ in range(24):
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
    study.optimize(lambda trial: 100 + sign * made_up(space, trial), n_trials=30)
    seen: list[float] = []
    errors = []
    for trial in study.trials:
        said = trial.user_attrs["proposal"]
        assert ("expected" in said) == (said["by"] == "acquisition")
        if "expected" in said:
            assert min(seen) - 1e-4 <= said["expected"] <= max(seen) + 1e-4
            errors.append(abs(said["expected"] - trial.value))
        seen.append(trial.value)
    assert len(errors) > 15
    assert np.median(errors) < np.median(np.abs(np.array(seen) - np.median(seen)))


def test_an_activation_that_the_sampler_does_not_know(space, features):
    study = optuna.create_study(sampler=ActivationSampler(space, features=features))
    with pytest.raises(SearchError, match=r"activations=\(\.\.\., 'stage1'\)"):
        study.optimize(lambda trial: float(bool(space.suggest(trial, "stage1"))), n_trials=1)
    for names in [(), ("a", "a"), ("", "a")]:
        with pytest.raises(SearchError, match="one name for each"):
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


# --- study files ----------------------------------------------------------------------------

STUDY = (
    f"""
name = "rates"
space = "classic"
trials = 24
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
    assert len(trials) == 24
    assert trials[0].params["training.learning_rate"] == pytest.approx(0.05)
    assert trials[0].params["training.optimizer"] == "sgd"
    assert {t.params["training.batch_size"] for t in trials} <= {16, 32, 48, 64}
    assert len({t.params["training.learning_rate"] for t in trials}) > 10
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
    assert "tuned alone" in " ".join(out.split())
    code, out, _ = bo_act("why", str(study_file), "23")
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
        ('"training.rate" = { low = 1, high = 2 }', "nothing to search"),
        ('"training.threads" = { low = 1, high = 2 }', "nothing to search"),
        ('"data.train" = { low = 1, high = 2 }', "expected 'training.NAME' or 'model"),
        ('"model.options.depth" = { low = 1, high = 2 }', "give depth a value in"),
        ('"training.momentum" = { low = 0.1, high = 0.5 }', "is not among what is searched"),
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
    with pytest.raises(SpecError, match=r"needs a list of all .* where parameters are searched"):
        read_study(str(study_file), {key: value})


def test_a_function_is_given_up_after_its_retries(space, features):
    sampler = ActivationSampler(space, features=features, parameters=RATE, max_retries=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    side = sampler.configurations(study)
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
    assert side.view(StudyView.of(study)).observations.closed == {(1,)}
    assert side.view(StudyView.of(study)).number == 0  # lost trials are none


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
    assert _best_of(parse("tanh(x)"), spec, study).settings == {"training.learning_rate": 0.1}
    assert _best_of(parse("relu(x)"), spec, study).settings == spec.defaults

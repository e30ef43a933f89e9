"""Studies with constraints, or with several directions, in real storages."""

from __future__ import annotations

import json
import math
import threading
import warnings

import numpy as np
import optuna
import pytest

import bo_act
from bo_act import ActivationSampler, BoActError, EmbeddingSampler, Metric, improvement_left, why
from bo_act.errors import SearchError
from bo_act.search.strategies import Evolution, RandomSearch
from bo_act.study.storage.trials import count

optuna.logging.set_verbosity(optuna.logging.ERROR)

POINTS = np.random.default_rng(0).uniform(size=(300, 2))
BOTH = ["maximize", "minimize"]


def near(item: int) -> float:
    return -float(np.linalg.norm(POINTS[item] - [0.2, 0.3]))


def far(item: int) -> float:
    return float(np.linalg.norm(POINTS[item] - [0.8, 0.6]))


def two(sampler: EmbeddingSampler):
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        item = sampler.suggest(trial)
        return near(item), far(item)

    return objective


def searched(sampler: EmbeddingSampler, trials: int, **options) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, **({"directions": BOTH} | options))
    study.optimize(two(sampler), n_trials=trials)
    return study


def items(study: optuna.Study) -> list[int]:
    return [trial.params["item"] for trial in study.trials]


@pytest.fixture
def storage(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 's.db'}"


# --- several directions ---------------------------------------------------------------------


def test_a_resumed_study_of_two_objectives_goes_on_as_an_uninterrupted_one(storage):
    whole = searched(EmbeddingSampler(POINTS, seed=1), 9)
    searched(EmbeddingSampler(POINTS, seed=1), 6, storage=storage, study_name="s")
    sampler = EmbeddingSampler(POINTS, seed=1)
    study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
    study.optimize(two(sampler), n_trials=3)
    assert items(study) == items(whole)
    proposal = study.trials[8].user_attrs["proposal"]
    assert proposal["by"] == "acquisition"
    first, second = proposal["expected"]  # in the study's own signs
    assert first < 0 < second


def test_workers_of_two_objectives_share_no_item(storage):
    searched(EmbeddingSampler(POINTS), 4, storage=storage, study_name="s")

    def work() -> None:
        sampler = EmbeddingSampler(POINTS)
        study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
        study.optimize(two(sampler), n_trials=3)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = optuna.load_study(study_name="s", storage=storage)
    assert len(set(items(study))) == 10
    assert all(trial.values for trial in study.trials)


def test_another_parameter_is_searched_with_two_objectives():
    sampler = EmbeddingSampler(POINTS)
    study = optuna.create_study(directions=BOTH, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        item, x = sampler.suggest(trial), trial.suggest_float("x", 0, 1)
        return near(item) - (x - 0.5) ** 2, far(item)

    study.optimize(objective, n_trials=7)
    assert study.trials[6].user_attrs["proposal"]["by"] == "acquisition"


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (0.5, math.nan), (0.5, math.inf)])
def test_a_diverged_trial_is_the_worst_in_each_objective(bad):
    sampler = EmbeddingSampler(POINTS)
    study = optuna.create_study(directions=BOTH, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        item = sampler.suggest(trial)
        return bad if trial.number == 2 else (near(item), far(item))

    study.optimize(objective, n_trials=6)
    assert count(study.trials).diverged == 1
    assert len(set(items(study))) == 6
    seen = sampler.view(study).observations
    assert seen.values[2] == seen.values.min()
    assert seen.others[2, 0] == seen.others[:, 0].min()
    assert why(study, sampler, 2).state == "diverged"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warm_start": [], "metric": Metric("accuracy")}, "a metric supports one objective"),
        ({"acquisition": bo_act.AcquisitionSpec(name="ucb")}, "'ucb' supports one objective"),
        ({"surrogate": bo_act.SurrogateSpec(noise=0.1)}, "the noise of a measurement"),
        ({"warm_start": ["digits_mlp"]}, "a warm start supports one objective"),
        ({"strategy": "evolution"}, "evolution supports one objective"),
    ],
)
def test_what_is_of_one_objective_says_so_and_leaves_no_trial_running(options, said):
    space = bo_act.load_space("act_bench")
    embedding = np.random.default_rng(0).uniform(size=(len(space.catalogue), 2))
    if options.get("strategy"):
        options = {"strategy": Evolution(space)}
    sampler = ActivationSampler(space, embedding=embedding, **options)
    study = optuna.create_study(directions=BOTH, sampler=sampler)
    with pytest.raises(SearchError, match=said):
        study.ask()
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_random_search_is_of_any_number_of_objectives():
    study = searched(EmbeddingSampler(POINTS, strategy=RandomSearch()), 6)
    assert study.trials[5].user_attrs["proposal"]["by"] == "strategy"


def test_what_reads_one_value_says_how_many_there_are(tmp_path):
    sampler = EmbeddingSampler(POINTS)
    study = searched(sampler, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the names are experimental, says Optuna
        study.set_metric_names(["accuracy", "seconds"])
    for ask in (
        lambda: improvement_left(study, sampler),
        lambda: bo_act.confirm(study, lambda a, s: 0.0, space=bo_act.load_space("classic")),
        lambda: bo_act.add_source_trials(study, bo_act.load_space("classic"), []),
    ):
        with pytest.raises(BoActError, match="2"):
            ask()


def test_commands_show_the_front(bo_act, storage, tmp_path):
    study = searched(EmbeddingSampler(POINTS), 6, storage=storage, study_name="s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.set_metric_names(["accuracy", "seconds [a]"])
    named = ("--storage", storage, "--study", "s")
    code, out, _ = bo_act("best", *named, "--json")
    front = json.loads(out)["front"]
    assert (code, sorted(one["trial"] for one in front)) == (
        0,
        sorted(trial.number for trial in study.best_trials),
    )
    assert front[0]["values"] == max(trial.values for trial in study.best_trials)
    code, out, _ = bo_act("best", *named)
    assert code == 0
    assert "Pareto front" in out
    assert "seconds [a] (minimize)" in " ".join(out.split())
    code, out, _ = bo_act("status", *named)
    assert code == 0
    assert f"{len(front)} function" in out
    code, out, _ = bo_act("why", *named, "5")
    assert code == 0
    assert "expected" in out
    code, out, _ = bo_act("report", *named, "-o", str(tmp_path / "r.html"))
    assert code == 0
    page = (tmp_path / "r.html").read_text()
    assert "Pareto front" in page
    assert "seconds [a] (minimize)" in page
    code, _, err = bo_act("plot", "progress", *named, "-o", "p.pdf")
    assert code != 0
    assert "2 objectives (accuracy, seconds [a])" in err


# --- constraints ----------------------------------------------------------------------------


def constrained(sampler: EmbeddingSampler, trials: int, *, noted: bool = False, **options):
    """Near a place that violates the constraint."""
    study = optuna.create_study(direction="minimize", sampler=sampler, **options)

    def objective(trial: optuna.Trial) -> float:
        item = sampler.suggest(trial)
        if noted:
            trial.set_constraint("memory", violation(item))
        trial.set_user_attr("violation", violation(item))
        return far(item)

    study.optimize(objective, n_trials=trials)
    return study


def violation(item: int) -> float:
    return float(POINTS[item, 0] - 0.4)


def by_func(**options) -> EmbeddingSampler:
    return EmbeddingSampler(
        POINTS, constraints_func=lambda trial: (trial.user_attrs["violation"],), **options
    )


def test_constraints_of_a_function_and_of_the_objective_guide_alike():
    told = constrained(by_func(), 12)
    noted = constrained(EmbeddingSampler(POINTS), 12, noted=True)
    assert items(told) == items(noted)
    assert told.trials[0].constraints["0"] == noted.trials[0].constraints["memory"]
    good = [item for item in range(300) if violation(item) <= 0]
    assert told.best_value <= sorted(map(far, good))[2]
    assert all(0 <= t.user_attrs["proposal"]["feasible"] <= 1 for t in told.trials[4:])
    # Without them, the search goes where they are violated.
    blind = constrained(EmbeddingSampler(POINTS), 12)
    assert sum(violation(i) > 0 for i in items(blind)[4:]) > sum(
        violation(i) > 0 for i in items(told)[4:]
    )


def test_constraints_of_optunas_own_samplers_are_the_same(storage):
    """A study goes on with the one or the other."""
    constrained(by_func(), 6, storage=storage, study_name="s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # they prefer trial.set_constraint now
        theirs = optuna.samplers.TPESampler(
            seed=0, constraints_func=lambda t: (t.user_attrs["violation"],)
        )
    study = optuna.load_study(study_name="s", storage=storage, sampler=theirs)
    sampler = by_func()

    def objective(trial: optuna.Trial) -> float:
        item = sampler.suggest(trial)
        trial.set_user_attr("violation", violation(item))
        return far(item)

    study.optimize(objective, n_trials=2)
    again = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
    again.optimize(objective, n_trials=1)
    assert [next(iter(trial.constraints)) for trial in again.trials] == ["0"] * 9
    assert sampler.view(again).observations.constraints.shape == (9, 1)


def test_the_best_satisfies_the_constraints(bo_act, storage, tmp_path):
    study = constrained(by_func(), 8, storage=storage, study_name="s")
    named = ("--storage", storage, "--study", "s")
    best = json.loads(bo_act("best", *named, "--json")[1])["best"]
    assert best["trial"] == study.best_trial.number
    assert violation(study.best_trial.params["item"]) <= 0
    code, out, _ = bo_act("why", *named, "7")
    assert code == 0
    assert "probability" in out
    from bo_act import write_report

    page = write_report(study, None, tmp_path / "r.html").read_text()
    assert "violates the constraint 0" in page


def test_with_nothing_feasible_it_says_so(bo_act, storage):
    sampler = EmbeddingSampler(POINTS, constraints_func=lambda trial: [3.0])
    study = constrained(sampler, 6, storage=storage, study_name="s")
    assert study.trials[5].user_attrs["proposal"]["by"] == "acquisition"
    assert improvement_left(study, sampler) == math.inf
    named = ("--storage", storage, "--study", "s")
    code, out, _ = bo_act("best", *named)
    assert code == 0
    assert "All 6 functions violate a constraint (0), so none is the best." in out
    assert bo_act("status", *named)[0] == 0
    code, _, err = bo_act("plot", "progress", *named, "-o", "p.pdf")
    assert code != 0
    assert "nothing to plot: All 6 functions violate a constraint (0), so none is the best" in err


@pytest.mark.parametrize("directions", [["maximize"], BOTH], ids=["one", "two"])
def test_what_diverged_has_not_failed(bo_act, storage, directions):
    """Optuna makes a failure of NaN, which is a result here."""
    sampler = EmbeddingSampler(POINTS)
    study = optuna.create_study(
        directions=directions, sampler=sampler, storage=storage, study_name="s"
    )
    bad = (math.nan,) * len(directions)
    study.optimize(lambda trial: (sampler.suggest(trial), bad)[1], n_trials=3)
    named = ("--storage", storage, "--study", "s")
    found = json.loads(bo_act("best", *named, "--json")[1])
    assert (found["trials"]["diverged"], found["failures"]) == (3, [])
    assert "All 3 functions diverged" in found["lacking"]
    assert "unknown reason" not in bo_act("why", *named, "2")[1]
    assert why(study, sampler, 2).failure is None


@pytest.mark.parametrize(
    ("func", "said"),
    [
        (lambda trial: [math.nan], "got NaN"),
        (lambda trial: 1.0, "got 1.0"),
        (lambda trial: ["much"], "got ['much']"),
        (lambda trial: trial.user_attrs["none"], "constraints_func fails on trial 0: KeyError"),
    ],
)
def test_what_is_no_constraint_says_so_and_the_value_is_kept(func, said):
    sampler = EmbeddingSampler(POINTS, constraints_func=func)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(SearchError) as caught:
        study.optimize(lambda trial: far(sampler.suggest(trial)), n_trials=1)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert study.trials[0].value is not None


def test_what_knows_no_constraints_is_refused_at_once():
    with pytest.raises(SearchError, match="expected a function of a trial"):
        EmbeddingSampler(POINTS, constraints_func=3)  # type: ignore[arg-type]
    with pytest.raises(SearchError, match="a strategy has none"):
        by_func(strategy=RandomSearch())
    with pytest.raises(SearchError, match="'thompson' does not support constraints"):
        by_func(acquisition=bo_act.AcquisitionSpec(name="thompson"))
    assert by_func(acquisition=bo_act.AcquisitionSpec(name="log_pi"))


def test_constraints_beside_two_objectives(storage):
    sampler = EmbeddingSampler(POINTS, constraints_func=lambda t: [violation(t.params["item"])])
    study = searched(sampler, 8, storage=storage, study_name="s")
    proposal = study.trials[7].user_attrs["proposal"]
    assert len(proposal["expected"]) == 2
    assert 0 <= proposal["feasible"] <= 1
    assert all(violation(trial.params["item"]) <= 0 for trial in study.best_trials)


def test_trees_are_searched_with_constraints_and_two_objectives():
    space = bo_act.load_space("act_bench")
    sampler = ActivationSampler(
        space, candidates="trees", baselines=["relu(x)", "tanh(x)"], constraints_func=_long
    )
    study = optuna.create_study(directions=BOTH, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        text = str(space.suggest_expression(trial))
        return float(text.count("x")), float(len(text))

    study.optimize(objective, n_trials=6)
    assert study.trials[5].user_attrs["proposal"]["by"] == "acquisition"


def _long(trial: optuna.trial.FrozenTrial) -> list[float]:
    return [len(trial.user_attrs["activation"]) - 20.0]

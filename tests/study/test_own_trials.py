"""Trials of warm-start sources count for nothing, and nobody has to remember that."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from benchmarks_of_tests import random_benchmark
from optuna.pruners import _filter_study
from optuna.trial import TrialState
from pages import ROOT
from rich.console import Console

from bo_act.benchmark.parquet import save
from bo_act.benchmark.sources import as_source
from bo_act.errors import SearchError
from bo_act.events import Events
from bo_act.report.embedding_map import embedding_map
from bo_act.report.loaded_study import LoadedStudy, load_for_report
from bo_act.report.trials import importances, rows
from bo_act.spaces.space import load_space
from bo_act.specs import StudySpec
from bo_act.study.results.explanation import why
from bo_act.study.results.status import read_status
from bo_act.study.results.summary import best_value, read_result
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.runner import run_study
from bo_act.study.running.supervisor import TrialWatcher
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.sampling.warm_start import add_source_trials
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import count, own_only, own_trials
from bo_act.terminal.now import Now

optuna.logging.set_verbosity(optuna.logging.WARNING)

# --- nobody else reads them -----------------------------------------------------------------

READS = {
    *("get_trials", "_get_trials", "get_all_trials", "get_best_trial", "get_n_trials"),
    *("best_trial", "best_trials", "best_value", "best_params", "trials_dataframe"),
}
"""What a study or its storage is asked for trials by."""

READERS = {"get_param_importances", "IntersectionSearchSpace"}
"""Functions of Optuna's that read a study by themselves."""

NO_STUDIES = {"spec", "task.spec", "view", "seen", "land", "status", "result", "self",
              "subject", "self.subject", "StudyView.of(study)"}  # fmt: skip
"""What else has an attribute ``trials``."""


def reads_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if node.attr in READS or (node.attr == "trials" and of not in NO_STUDIES):
                yield node.lineno, f"{of}.{node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in READERS:
            argument = ast.unparse(node.args[0]) if node.args else ""
            if not argument.startswith("own_only("):
                yield node.lineno, ast.unparse(node)


def test_one_module_reads_trials():
    home = ROOT / "bo_act" / "study" / "storage" / "trials.py"
    assert list(reads_of(ast.parse(home.read_text())))  # it is found where it is
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted((ROOT / "bo_act").rglob("*.py"))
        if path != home
        for line, what in reads_of(ast.parse(path.read_text()))
    ]
    assert not found, "ask bo_act/study/storage/trials.py for the study's own trials"


# --- the same study with and without them ---------------------------------------------------

OBJECTIVE = """
import torch


def objective(trial, activation):
    return float(activation()(torch.tensor([0.3])).tanh())
"""

STUDY = {
    "name": "plain",
    "space": "classic",
    "storage": "both.log",
    "trials": 8,
    "objective": "mine.py:objective",
    "warm_start": {"sources": ["two.parquet"], "first": 2, "as_trials": 0},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[tuple[StudySpec, StudySpec]]:
    """Two runs of a study; the second holds trials of its source."""
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BO_ACT_CACHE_DIR", str(folder / "cache"))
        two = random_benchmark(load_space("classic"), seed=2)
        save(dataclasses.replace(two, name="two"), folder / "two.parquet")
        Path("mine.py").write_text(OBJECTIVE)
        plain = StudySpec.model_validate(STUDY)
        warm = plain.warm_start.model_copy(update={"as_trials": 30})
        marked = plain.model_copy(update={"name": "marked", "warm_start": warm})
        run_study(plain)
        run_study(marked)
        assert len(load_study(marked).trials) == 38
        yield plain, marked


def test_every_reader_sees_own_trials_alone(both):
    studies = [load_study(spec) for spec in both]

    def functions(trials) -> list:
        return [trial.user_attrs["activation"] for trial in trials]

    one, other = (functions(own_trials(study)) for study in studies)
    assert one == other
    assert len(one) == 8
    views = [StudyView.of(study) for study in studies]
    assert [functions(view.trials) for view in views] == [one, one]
    assert {view.number for view in views} == {8}
    assert len({best_value(study) for study in studies}) == 1
    assert len({count(view.trials) for view in views}) == 1
    subjects = [load_for_report(spec) for spec in both]
    assert len({tuple(row.functions for row in rows(subject)) for subject in subjects}) == 1
    maps = [embedding_map(subject).trials for subject in subjects]
    assert [index for _, index in maps[0][0]] == [index for _, index in maps[1][0]]
    found = [read_result(spec) for spec in both]
    assert [result.trials.complete for result in found] == [8, 8]
    assert len({result.best.activation for result in found}) == 1


def shown(study: optuna.Study) -> str:
    page = io.StringIO()
    Console(file=page, width=200).print(Now(study))
    return page.getvalue()


def test_the_live_view_and_the_rate(both):
    plain, marked = both
    study = load_study(marked)
    text = shown(study)
    assert "trials 8 complete \n" in re.sub(" +", " ", text)
    assert f"best   {metric_of(study).text(best_value(study))}  " in text
    ends = sorted(trial.datetime_complete for trial in own_trials(study))
    found = read_status(marked)
    assert found.per_hour == pytest.approx(7 * 3600 / (ends[-1] - ends[0]).total_seconds())
    assert found.trials == read_status(plain).trials


def test_before_the_first_own_trial_there_is_nothing(both):
    study = optuna.create_study(direction="maximize")
    space = load_space("classic")
    add_source_trials(study, space, [as_source(random_benchmark(space, seed=3), space)], most=9)
    assert shown(study).split() == ["trials", "none", "yet"]
    spec = both[0].model_copy(update={"name": study.study_name})
    found = read_status(spec, study)
    assert (found.per_hour, found.best, found.trials.finished) == (None, None, 0)
    assert importances(LoadedStudy(study))[0] == {}
    assert LoadedStudy(study).activations == ("",)


def test_callbacks_are_told_of_own_trials_alone():
    """Another command adds those of sources while a crew is at work."""
    study = optuna.create_study(direction="maximize")
    told: list[int] = []
    watch = TrialWatcher(
        study, 5, Events(), Callbacks([("mine", lambda _, t: told.append(t.number))])
    )
    space = load_space("classic")
    add_source_trials(study, space, [as_source(random_benchmark(space, seed=3), space)], most=4)
    trial = study.ask()
    study.tell(trial, 0.5)
    assert watch.look() == 1
    assert told == [trial.number] == [4]


def test_a_trial_of_a_source_is_not_explained(both):
    study = load_study(both[1])
    sampler = ActivationSampler(load_space("classic"))
    with pytest.raises(SearchError, match=r"trial 3 .* source 'two', .* own trials begin at 30"):
        why(study, sampler, 3)
    assert why(study, sampler, 30).trial == 30
    with pytest.raises(SearchError, match="no trial 38; its trials are 0 to 37"):
        why(study, sampler, 38)


# --- what Optuna's own code reads -----------------------------------------------------------


def rates(sampler: optuna.samplers.BaseSampler, sources: int, trials: int) -> optuna.Study:
    """Search a rate beside the function, in a study that holds trials of a source."""
    space = load_space("classic")
    study = optuna.create_study(direction="maximize", sampler=sampler)
    if sources:
        source = as_source(random_benchmark(space, seed=3), space)
        add_source_trials(study, space, [source], most=sources)

    def objective(trial: optuna.Trial) -> float:
        space.suggest_expression(trial)
        rate = trial.suggest_float("rate", 0.001, 1.0, log=True)
        return -abs(np.log(rate / 0.05))

    study.optimize(objective, n_trials=trials)
    return study


@pytest.mark.parametrize(
    "delegate",
    [
        lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=4),
        lambda: optuna.samplers.GPSampler(seed=1, n_startup_trials=4),
    ],
    ids=["TPE", "GP"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_delegate_sees_own_trials_alone(delegate):
    def found(sources: int) -> list[float]:
        sampler = ActivationSampler(load_space("classic"), delegate=delegate(), initial=3)
        return [t.params["rate"] for t in own_trials(rates(sampler, sources, 8))]

    assert found(20) == found(0)


def test_importances_are_of_own_trials_alone():
    """The source has no rate, and other values: what both have in common is not the study's."""

    def found(sources: int) -> dict[str, float]:
        study = rates(optuna.samplers.RandomSampler(seed=0), sources, 12)
        return importances(LoadedStudy(study))[0]

    assert found(20) == found(0)
    assert set(found(20)) == {"expression", "rate"}


def test_under_hyperband_a_delegate_sees_a_bracket():
    study = rates(optuna.samplers.RandomSampler(seed=0), 9, 12)
    study.pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    trial = own_trials(study)[-1]
    study.pruner.prune(study, trial)
    bracket = _filter_study(study, trial)
    seen = [one.number for one in own_only(bracket, trial).get_trials()]
    assert seen == [one.number for one in own_trials(bracket)]
    assert 0 < len(seen) < 12


def test_a_study_for_optunas_code_is_the_study():
    space = load_space("classic")
    study = optuna.create_study(direction="maximize")
    add_source_trials(study, space, [as_source(random_benchmark(space, seed=3), space)], most=4)
    seen = own_only(study)
    assert seen.trials == seen.get_trials(states=[TrialState.COMPLETE]) == []
    trial = study.ask()
    seen._storage.set_trial_user_attr(trial._trial_id, "told", 1)
    assert seen.trials[0].user_attrs == {"told": 1}
    assert (seen.study_name, seen.direction) == (study.study_name, study.direction)

    def stops(trial: optuna.Trial) -> float:
        own_only(trial.study).stop()
        return 0.5

    study.optimize(stops, n_trials=3)
    assert len(own_trials(study)) == 2

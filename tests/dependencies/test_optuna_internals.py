"""What bo-act relies on of Optuna's private parts: each is named here, and used in one file."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

import bo_act
from bo_act.dependencies import optuna_internals
from bo_act.dependencies.optuna_internals import (
    RUNS_TRIALS,
    TELLS_VALUES,
    backend_of,
    contains,
    filter_study,
    id_of,
    is_optimizing,
    is_stopping,
    models,
    storage_of,
    study_id,
    whole_study,
)

PACKAGE = Path(bo_act.__file__).parent


@pytest.fixture(params=["memory", "sqlite"])
def study(request, tmp_path) -> optuna.Study:
    storage = None if request.param == "memory" else f"sqlite:///{tmp_path / 's.db'}"
    return optuna.create_study(storage=storage)


def test_a_study_and_its_trials_are_found_in_the_storage(study):
    trial = study.ask()
    storage = storage_of(study)
    assert storage.get_trial(id_of(trial)).number == trial.number == 0
    assert [id_of(t) for t in storage.get_all_trials(study_id(study))] == [id_of(trial)]
    inner = backend_of(study)
    assert inner is None or inner.get_trial(id_of(trial)).number == 0


def test_what_study_optimize_does_is_seen(study):
    seen = []

    def objective(trial):
        seen.append((is_optimizing(study), is_stopping(study)))
        study.stop()
        seen.append((is_optimizing(study), is_stopping(study)))
        return 0.0

    assert not is_optimizing(study)
    study.optimize(objective, n_trials=3)
    assert seen == [(True, False), (True, True)]


def test_a_bracket_of_hyperband_is_a_part_of_a_study(study):
    study.pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=27)

    def objective(trial):
        trial.report(0.0, 1)
        return float(trial.should_prune())

    study.optimize(objective, n_trials=20)
    part = filter_study(study, study.trials[0])
    assert 0 < len(part.get_trials()) < 20
    assert whole_study(part) is study
    assert whole_study(study) is study


def test_values_of_distributions():
    assert contains(FloatDistribution(0.0, 1.0), 0.5)
    assert not contains(FloatDistribution(0.0, 1.0), 1.5)
    assert contains(CategoricalDistribution(("a", "b")), 1)


@pytest.mark.parametrize(
    ("place", "variable"), [(RUNS_TRIALS, "func_err"), (TELLS_VALUES, "value_or_values")]
)
def test_functions_whose_frames_are_looked_at(place, variable):
    module, name = place
    function = inspect.unwrap(getattr(import_module(module), name))
    assert variable in function.__code__.co_varnames + function.__code__.co_cellvars


def test_tables_of_a_database():
    assert {"trial_id", "heartbeat"} <= set(models.TrialHeartbeatModel.__table__.columns.keys())
    assert "study_id" in models.TrialModel.__table__.columns


def private(tree: ast.AST) -> set[str]:
    """Private names of Optuna's that a module uses: of imports, and of its studies and trials."""
    known = {"_storage", "_trial_id", "_study_id", "_contains", "_thread_local", "_stop_flag"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if name.startswith("_")}
        elif isinstance(node, ast.Attribute) and node.attr in known:
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            found |= set() if own else {node.attr}
    return found


def test_no_other_file_uses_them():
    where = Path(optuna_internals.__file__)
    used = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path != where and (names := private(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert used == {}, "put them into bo_act/dependencies/optuna_internals.py"
    assert private(ast.parse(where.read_text(encoding="utf-8")))

"""Objectives of one's own are confirmed with fresh seeds, where the study file asks for it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from small_studies import STORAGE

from bo_act.specs import StudySpec
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

CODE = """
import torch
from bo_act import Diverged

def train(trial, activation, *, seed):
    {asked}
    noise = torch.randn(2, generator=torch.Generator().manual_seed(seed)).mul(0.01)
    value = float(activation(torch.tensor(1.0))) {more}
    {before}
    with open("log", "a") as log:
        print(seed, file=log)
    return {returned}
"""
BOTH = '{"validation": value + float(noise[0]), "test": value + float(noise[1])}'


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(returned=BOTH, asked="", more="", before="", code=CODE, **changes) -> StudySpec:
    for name, text in (("asked", asked), ("more", more), ("before", before)):
        code = code.replace("{" + name + "}", text)
    Path("my_train.py").write_text(code.replace("{returned}", returned))
    content = {
        "name": "mine",
        "objective": "my_train.py:train",
        "trials": 6,
        "storage": STORAGE,
        "space": "classic",
        "features": {"fim": False},
        "metric": {"name": "error", "direction": "minimize", "unit": "nats"},
        "confirm": {"top": 2, "seeds": 3, "baselines": []},
    }
    return StudySpec.model_validate(content | changes)


def seeds_asked() -> list[int]:
    return [int(line) for line in Path("log").read_text().split()]


def test_the_best_and_relu_are_trained_again_with_fresh_seeds(bo_act):
    result = run_study(spec := make())
    assert [row.role for row in result.confirmed][:2] == ["found", "found"]
    assert "relu(x)" in [row.activation for row in result.confirmed]
    for row in result.confirmed:
        assert (row.seeds, row.diverged, row.on) == (3, 0, "test")
        assert row.test.mean != row.validation.mean
        assert row.test.low < row.test.mean < row.test.high
    fresh = set(seeds_asked()) - {spec.seed}
    assert len(fresh) == 3  # the same for each function
    assert result.confirmed[0].minus["relu(x)"].mean < 0  # smaller is better
    # Kept: neither another reader nor the same command trains again.
    trained = len(seeds_asked())
    assert read_result(spec).confirmed == result.confirmed
    assert run_study(spec).confirmed == result.confirmed
    assert len(seeds_asked()) == trained


def test_without_test_data_it_is_said_what_was_compared(bo_act):
    Path("mine.toml").write_text(
        'name = "mine"\nobjective = "my_train.py:train"\ntrials = 5\nspace = "classic"\n'
        "features.fim = false\nconfirm = { top = 1, seeds = 2, baselines = [] }\n"
    )
    make("value + float(noise[0])")
    code, out, err = bo_act("run", "mine.toml")
    assert code == 0, err
    assert "Confirmed on validation data" in out
    assert "test" not in out.replace("latest", "")


def test_parameters_that_it_asks_for_are_those_of_the_search():
    asked = 'rate = trial.suggest_float("rate", 0.1, 1.0); trial.report(1.0, 0)'
    result = run_study(make(asked=asked, more="+ rate"))
    best = min(load_study(make(asked=asked, more="+ rate")).trials, key=lambda t: t.value)
    first = result.confirmed[0]
    assert first.activation == best.user_attrs["activation"]
    assert first.validation.mean == pytest.approx(best.value, abs=0.05)


def test_a_training_that_diverges_counts_as_the_worst():
    before = "if seed > 100 and seed % 2: raise Diverged"
    result = run_study(spec := make(before=before, confirm={"top": 1, "seeds": 8, "baselines": []}))
    worst = max(trial.value for trial in load_study(spec).trials)
    runs = [v for k, v in load_study(spec).user_attrs.items() if k.startswith("bo_act:confirmed")]
    diverged = [run for run in runs if run["status"] == "diverged"]
    assert diverged
    assert {run["test"] for run in diverged} == {worst}
    assert sum(row.diverged for row in result.confirmed) == len(diverged)


def test_without_a_table_or_a_seed_nothing_is_confirmed():
    spec = make()
    without = {k: v for k, v in spec.model_dump().items() if k != "confirm"}
    assert run_study(StudySpec.model_validate(without)).confirmed == ()
    code = CODE.replace(", *, seed", "").replace("manual_seed(seed)", "manual_seed(0)")
    code = code.replace("print(seed", "print(0")
    with pytest.warns(UserWarning, match="the objective takes no seed"):
        assert run_study(make(code=code, name="no_seed")).confirmed == ()


@pytest.mark.slow
def test_workers_confirm_alike():
    alone = run_study(make(name="alone"))
    assert run_study(make(name="two"), workers=2).confirmed == alone.confirmed

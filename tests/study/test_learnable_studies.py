"""Studies whose functions learn scales: trained, recorded, shown, and no other study's trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_studies import SPACE, make

from bo_act.activations.learnt import LEARNT, read_learnt
from bo_act.errors import SpecError, StorageError
from bo_act.report.loaded_study import load_for_report
from bo_act.report.study import study_report
from bo_act.specs.files import read_study
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study

SMALL = {"trials": 3, "confirm": {"seeds": 0}, "features": {"fim": False}}
SMALL |= {"training": {"epochs": 1}}


@pytest.fixture(autouse=True)
def _space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


@pytest.mark.parametrize(
    ("learnable", "channels"), [("layer", [None, None]), ("channel", [16, 16])]
)
def test_what_is_learnt_is_kept_and_drawn(learnable, channels):
    spec = make(**SMALL, activation={"learnable": learnable})
    run_study(spec)
    best = load_study(spec).best_trial
    found = read_learnt(best.user_attrs[LEARNT])
    assert [one.channels for one in found] == channels
    assert any(abs(after.output - 1) > 1e-3 for one in found for after in one.after)
    page = study_report(load_for_report(spec))
    assert f"Learned scales of trial {best.number}" in page
    for one in found:
        assert f"<code>{one.place}</code>" in page
    assert ("5 of 16 channels" in page) == (learnable == "channel")


def test_a_plain_study_has_nothing_of_it():
    spec = make(**SMALL)
    run_study(spec)
    assert not any(LEARNT in trial.user_attrs for trial in load_study(spec).trials)
    assert "Learned scales" not in study_report(load_for_report(spec))
    with pytest.raises(StorageError, match=r"activation\.learnable"):
        run_study(make(**SMALL, activation={"learnable": "layer"}))


def test_an_objective_gets_functions_that_learn():
    Path("mine.py").write_text(
        "def objective(trial, activation):\n"
        "    assert activation.learnable == 'channel'\n"
        "    assert activation.scale_operators\n"
        "    return float(trial.number)\n"
    )
    learnt = {"learnable": "channel", "scale_operators": True}
    spec = make(
        **{**SMALL, "training": {}}, model=None, data=None, objective="mine.py:objective",
        activation=learnt,
    )  # fmt: skip
    run_study(spec)
    assert len(load_study(spec).trials) == 3


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('learnable = "chanel"', "'none', 'layer' or 'channel'"),
        ("scale_operators = true", "need learnable = 'layer' or 'channel'"),
        ("channel_dim = 2", "need learnable = 'layer' or 'channel'"),
        ('learnabel = "layer"', "did you mean 'learnable'"),
    ],
)
def test_a_wrong_table_is_said(table, says):
    Path("mine.toml").write_text(
        f'name = "mine"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n[activation]\n{table}\n'
    )
    with pytest.raises(SpecError) as error:
        read_study("mine.toml")
    assert says in str(error.value)

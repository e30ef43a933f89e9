"""``[metric]`` of a study file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bo_act.errors import SpecError
from bo_act.metrics import ACCURACY, METRICS, Metric
from bo_act.specs.files import read_study

BUILT_IN = 'name = "x"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n'
OWN = 'name = "x"\nobjective = "mine.py:objective"\n'


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text: str, **overrides: str):
    Path("x.toml").write_text(text)
    return read_study("x.toml", {key.replace("__", "."): v for key, v in overrides.items()})


@pytest.mark.parametrize(
    ("table", "metric"),
    [
        ("", Metric("value")),
        ('name = "loss"\ndirection = "minimize"', Metric("loss", "minimize")),
        ('name = "hits"\nunit = "percent"\nworst = 0', Metric("hits", unit="percent", worst=0.0)),
        ('direction = "minimize"\nunit = "plain"', Metric("value", "minimize")),
        # A known name says the rest, as far as the file does not.
        ('name = "mse"', METRICS["mse"]),
        ('name = "accuracy"\nunit = "plain"', Metric("accuracy")),
    ],
)
def test_an_objective_may_have_any_metric(table, metric):
    spec = read(f"{OWN}[metric]\n{table}\n")
    assert spec.measured == metric
    again = type(spec).model_validate(json.loads(spec.model_dump_json()))
    assert again.measured == metric


def test_the_built_in_training_has_those_it_knows():
    assert read(BUILT_IN).measured == ACCURACY
    for key, metric in METRICS.items():
        found = read(f'{BUILT_IN}[metric]\nname = "{key}"')
        assert (found.measured, found.metric.key) == (metric, key)
    # What is said besides may only say the same.
    assert read(f'{BUILT_IN}[metric]\nname = "mse"\ndirection = "minimize"').measured.sign < 0
    assert read(BUILT_IN, metric__name="auroc").measured.name == "AUROC"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{BUILT_IN}[metric]\nname = "acuracy"', "did you mean 'accuracy'"),
        (f'{BUILT_IN}[metric]\nname = "loss"', "other metrics need your own objective"),
        (f'{BUILT_IN}[metric]\nname = "mse"\ndirection = "maximize"', "only the name"),
        (f"{BUILT_IN}[metric]\nworst = 0.1", "only the name"),
        (f'{OWN}[metric]\ndirection = "minimise"', "did you mean 'minimize'"),
        (f'{OWN}[metric]\nname = ""', "metric.name: expected a line"),
        (f'{OWN}[metric]\nname = "a\\nb"', "metric.name: expected a line"),
        (f"{OWN}[metric]\nworst = inf", "metric.worst"),
        (f'{OWN}[metric]\nnome = "loss"', "unknown key 'metric.nome'"),
        (
            f'{OWN}[metric]\nunit = "percent"\n[pruner]\nname = "threshold"\nlower = 30',
            "expected lower and upper from 0 to 1",
        ),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(SpecError) as caught:
        read(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_is_pruned_by_values_of_any_size():
    spec = read(f'{OWN}[metric]\nname="mse"\n[pruner]\nname = "threshold"\nupper = 30\nlower = -1')
    assert (spec.pruner.lower, spec.pruner.upper) == (-1.0, 30.0)

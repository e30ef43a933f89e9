"""Studies of tables, tokens and dicts, from the file to the confirmation."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
import torch
from small_studies import STORAGE
from studies_of_tests import FEW

from bo_act import content
from bo_act.activations.expressions import parse
from bo_act.errors import BoActError, SpecError
from bo_act.specs import StudySpec
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.checks import check_before_search
from bo_act.tasks.task import Task

TABLE = """
import torch
def load(*, train):
    n = 60 if train else 30
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    hot = (x @ torch.eye(4)[:, :3] > 0)
    return {"classes": (x, x.argmax(1)), "numbers": (x, x.square().sum(1)),
            "labels": (x, hot), "dict": ({"x": x}, x.argmax(1))}["KIND"]
"""
NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, activation, out):
        super().__init__()
        self.into, self.act, self.out = nn.Linear(4, 8), activation(), nn.Linear(8, out)
    def forward(self, x):
        return self.out(self.act(self.into(x)))
def build(activation, *, out_features):
    return Net(activation, out_features)
"""
TOKENS = """
import torch
def load(*, train):
    n = 40 if train else 20
    tokens = torch.arange(n * 9).reshape(n, 9) % 7
    return tokens[:, :-1], tokens[:, 1:]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(FEW)
    Path("net.py").write_text(NET)


def study(kind: str, metric: str | None, **training: object) -> StudySpec:
    Path("mine.py").write_text(TOKENS if kind == "tokens" else TABLE.replace("KIND", kind))
    gpt = {"name": "gpt", "options": {"width": 8, "heads": 2, "depth": 1}}
    fixed = {"epochs": 2, "batch_size": 16, "threads": 1, "device": "cpu"}
    return StudySpec.model_validate(
        {
            "name": kind,
            "space": "few.toml",
            "trials": 4,
            "storage": STORAGE,
            "model": gpt if kind == "tokens" else {"name": "net.py"},
            "data": {"name": "mine.py:load", "validation": 20},
            "metric": {} if metric is None else {"name": metric},
            "training": fixed | training,
            "features": {"batch_size": 8, "quantiles": 8},
            "confirm": {"top": 1, "seeds": 2, "baselines": ["relu(x)"]},
        }
    )


KINDS = [
    ("classes", None, {}, "cross_entropy"),
    ("classes", "balanced_accuracy", {}, "cross_entropy"),
    ("dict", "auroc", {}, "cross_entropy"),
    ("numbers", "mse", {}, "mse"),
    ("numbers", "r2", {"loss": "mae"}, "mse"),
    ("labels", "accuracy", {"loss": "binary_cross_entropy"}, "binary_cross_entropy"),
    ("tokens", "bits_per_token", {}, "cross_entropy"),
    ("tokens", "perplexity", {"micro_batch": 5}, "cross_entropy"),
]


@pytest.mark.parametrize(("kind", "metric", "training", "loss"), KINDS)
def test_studies_of_any_kind_run_to_the_end(kind, metric, training, loss):
    spec = study(kind, metric, **training)
    result = run_study(spec)
    assert result.trials.complete == 4
    task = Task.load(spec)
    table = task.features()
    assert table.provenance["options"]["loss"] == loss
    assert table.provenance["uncovered"] == ()
    assert table.blocks["fim"].present.any()
    trial = load_study(spec).trials[0]
    network, again = task.train(parse(trial.user_attrs["activation"]), seed=spec.seed)
    assert again.value == trial.value
    value, _ = task.measure(network, task.data.validation)
    assert value == pytest.approx(trial.value)
    assert result.confirmed
    assert all(math.isfinite(row.test.mean) for row in result.confirmed)


@pytest.mark.parametrize(
    ("kind", "metric", "training", "says"),
    [
        ("numbers", None, {}, "metric.name: 'accuracy' does not fit .*metrics that fit: mse, r2"),
        ("classes", "mse", {}, "metrics that fit: accuracy, balanced_accuracy, auroc, log_loss"),
        ("numbers", "mse", {"label_smoothing": 0.1}, "label_smoothing is for cross-entropy"),
        ("tokens", "accuracy", {"collapse_epochs": 1}, "collapse_epochs looks for the accuracy"),
        ("classes", "accuracy", {"loss": "binary_cross_entropy"}, "of zeros and ones"),
        ("numbers", "mse", {"loss": "cross_entropy"}, "whole numbers as labels"),
        ("classes", "accuracy", {"channels_last": True}, "is for images"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_trial(kind, metric, training, says):
    spec = study(kind, metric, **training)
    with pytest.raises(BoActError, match=says) as caught:
        check_before_search(Task.load(spec))
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_may_be_of_tokens():
    Path("net.py").write_text(NET.replace("nn.Linear(4, 8)", "nn.Embedding(7, 8)"))
    spec = study("tokens", "bits_per_token").model_dump(exclude={"model"})
    spec = StudySpec.model_validate(spec | {"model": {"name": "net.py"}})
    check_before_search(Task.load(spec))
    other = Task.load(spec.model_copy(update={"metric": study("tokens", "auroc").metric}))
    with pytest.raises(SpecError, match="metrics that fit: bits_per_token, perplexity, accuracy"):
        check_before_search(other)


def test_a_metric_beyond_all_numbers_counts_as_a_divergence():
    spec = study("numbers", "mse")
    task = Task.load(spec)
    network, _ = task.train(parse("relu(x)"), seed=0)
    with torch.no_grad():
        network.out.bias.fill_(float("inf"))
    assert task.measure(network, task.data.validation)[0] == task.data.worst("mse")


@pytest.mark.parametrize("name", ["tiny_gpt", "diabetes_mlp", "breast_cancer_mlp", "friedman_mlp"])
def test_a_shipped_study_passes_its_checks_and_learns(name):
    values = tomllib.loads(content.find("studies", name).read_text())
    spec = StudySpec.model_validate(values)
    few = {"epochs": 1 if name == "tiny_gpt" else 12}
    spec = spec.model_copy(
        update={
            "training": spec.training.model_copy(update={**few, "device": "cpu"}),
            "data": spec.data.model_copy(
                update={"train": 200, "validation": 50} if name == "tiny_gpt" else {}
            ),
        }
    )
    task = Task.load(spec)
    check_before_search(task)
    _, result = task.train(parse("gelu(x)"), seed=0)
    worst = task.data.worst(task.metric)
    assert spec.measured.better(result.value, worst)
    assert abs(result.value - worst) > 0.2 * abs(worst)

"""Commands on a study of any program, by its storage and its name alone."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import bo_act as package
from bo_act.metrics import Metric
from bo_act.study.storage.opening import open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)

LOSS = Metric("loss", "minimize", "nats")


@pytest.fixture(scope="module")
def space():
    return package.load_space("classic")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stored(kind: str):
    """What a README's reader passes to ``create_study``, and what a command takes."""
    if kind == "journal":
        return JournalStorage(JournalFileBackend("mine.log")), "mine.log"
    return "sqlite:///mine.db", "sqlite:///mine.db"


def loop(space, kind: str = "sqlite", *, trials: int = 9, sampler=None, rate: bool = False) -> str:
    storage, url = stored(kind)
    sampler = sampler or package.ActivationSampler(space, metric=LOSS, seed=0)
    study = optuna.create_study(
        storage=storage, study_name="mine", direction="minimize", sampler=sampler
    )

    def objective(trial: optuna.Trial) -> float:
        activation = space.suggest(trial)
        value = float(activation(torch.tensor([0.7], dtype=torch.float64)))
        more = trial.suggest_float("lr", 0.1, 1.0) if rate else 0.0
        return 2.1033 + abs(value - 0.8) + more

    study.optimize(objective, n_trials=trials)
    return url


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_loop_of_a_readme_is_read_by_every_command(space, kind, bo_act):
    where = ("--storage", loop(space, kind, trials=11), "--study", "mine")
    code, out, _ = bo_act("best", *where)
    assert code == 0
    assert "Best of the search (loss, one seed)" in out
    assert re.search(r"2\.\d+ nats", out)
    assert "%" not in out
    found = json.loads(bo_act("best", *where, "--json")[1])
    values = [one["value"] for one in found["top"]]
    assert values == sorted(values)
    assert found["metric"] == LOSS.as_json()
    assert found["best"]["settings"] == {}
    code, out, _ = bo_act("status", *where)
    assert code == 0
    assert "11" in out
    assert "time left" not in out
    assert json.loads(bo_act("status", *where, "--json")[1])["total"] is None
    code, out, _ = bo_act("why", *where, "10")
    assert code == 0
    assert re.search(r"2\.\d+ nats, 90% interval", out)
    assert bo_act("why", "10", *where)[1] == out
    said = json.loads(bo_act("why", *where, "10", "--json")[1])
    assert said["explanation"]["low"] <= said["explanation"]["predicted"]
    assert len(said["neighbours"]) == 5
    code, out, _ = bo_act("report", *where)
    assert (code, out.strip()) == (0, "runs/mine/report.html")
    page = Path(out.strip()).read_text()
    assert "Map of the functions" in page
    assert "There is no map" not in page
    assert bo_act("plot", "map", *where, "-o", "map.png")[0] == 0


def test_settings_are_told_from_functions(space, bo_act):
    where = ("--storage", loop(space, rate=True), "--study", "mine")
    found = json.loads(bo_act("best", *where, "--json")[1])
    assert found["best"]["settings"].keys() == {"lr"}
    assert json.loads(bo_act("why", *where, "8", "--json")[1])["explanation"] is not None


def test_what_is_not_kept_is_said(space, bo_act):
    rows = torch.rand(len(space.catalogue), 3, generator=torch.Generator().manual_seed(0))
    url = loop(space, sampler=package.ActivationSampler(space, embedding=rows.numpy()))
    where = ("--storage", url, "--study", "mine")
    code, out, _ = bo_act("why", *where, "8")
    assert code == 0
    assert (
        "No further explanation: the program's own embedding cannot be stored in the study" in out
    )
    assert re.search(r"expected +│ 2\.\d+, as recorded in the trial", out)
    assert json.loads(bo_act("why", *where, "8", "--json")[1])["explanation"] is None
    code, out, _ = bo_act("report", *where, "-o", "r.html")
    assert code == 0
    assert "There is no map: the program&#39;s own embedding" in Path("r.html").read_text()


def test_spectra_are_not_kept(space, bo_act):
    class Network(torch.nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(4, 6), activation(), torch.nn.Linear(6, 3)
            )

        def forward(self, x):
            return self.layers(x)

    features = package.compute_features(
        space, network=Network, inputs=torch.randn(8, 4), targets=torch.arange(8) % 3
    )
    url = loop(space, sampler=package.ActivationSampler(space, features=features))
    code, out, _ = bo_act("why", "--storage", url, "--study", "mine", "8")
    assert code == 0
    assert "the sampler used features beyond" in out.replace("\n", " ")


def test_another_sampler_of_optuna(space, bo_act):
    where = ("--storage", loop(space, sampler=optuna.samplers.RandomSampler(seed=0)))
    where += ("--study", "mine")
    code, out, _ = bo_act("best", *where)
    assert code == 0
    assert "Best of the search (value, one seed)" in out
    code, out, _ = bo_act("why", *where, "3")
    assert code == 0
    assert "the study has no record of its sampler" in out.replace("\n", " ")
    assert bo_act("report", *where)[0] == 0


def test_several_places_and_items(space, bo_act):
    storage = "sqlite:///mine.db"
    sampler = package.ActivationSampler(space, activations=("early", "late"))
    study = optuna.create_study(storage=storage, study_name="two", sampler=sampler)
    study.optimize(
        lambda t: sum(len(str(space.suggest_expression(t, n))) for n in ("early", "late")),
        n_trials=6,
    )
    found = json.loads(bo_act("best", "--storage", storage, "--study", "two", "--json")[1])
    assert re.match(r"early: .*, late: ", found["best"]["activation"])
    assert bo_act("report", "--storage", storage, "--study", "two")[0] == 0
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).numpy()
    labels = [f"molecule {n}" for n in range(20)]
    items = package.EmbeddingSampler(points, labels=labels)
    study = optuna.create_study(storage=storage, study_name="items", sampler=items)
    study.optimize(lambda t: float(points[items.suggest(t)].sum()), n_trials=6)
    where = ("--storage", storage, "--study", "items")
    assert "molecule" in bo_act("best", *where)[1]
    assert "does not store the points of" in bo_act("why", *where, "5")[1].replace("\n", " ")
    assert bo_act("report", *where)[0] == 0


def test_a_study_of_a_file_is_read_as_one(bo_act, tmp_path):
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "classic"\ntrials = 3\n[model]\nname = "mlp"\n[data]\n'
        'name = "digits"\ntrain = 128\nvalidation = 200\n[training]\nepochs = 1\nthreads = 1\n'
        "[features]\nfim = false\n[confirm]\nseeds = 0\n"
    )
    assert bo_act("run", "s.toml", "--storage", "s.log", "--quiet")[0] == 0
    code, out, _ = bo_act("best", "--storage", "s.log", "--study", "s")
    assert code == 0
    assert re.search(r"Best of the search \(accuracy, one seed\)", out)
    assert re.search(r"\d\.\d\d%", out)
    assert json.loads(bo_act("status", "--storage", "s.log", "--study", "s", "--json")[1])["done"]
    assert bo_act("why", "2", "--storage", "s.log", "--study", "s")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("best",), "expected the study as STUDY, or as --storage URL --study NAME, got neither"),
        (("best", "quickstart", "--study", "x"), "got both"),
        (("best", "--study", "mine"), "give --storage URL"),
        (("best", "--storage", "sqlite:///mine.db", "--study", "mime"), "it has 'empty', 'foreign"),
        (("best", "--storage", "none.db", "--study", "x"), "there is no study storage at none.db"),
        (
            ("best", "--storage", "mine.db", "--study", "foreign"),
            "has no trial with a bo-act function",
        ),
        (("why", "--storage", "mine.db", "--study", "empty"), "expected the number of a trial"),
        (("why", "--storage", "mine.db", "--study", "empty", "-1"), "No such option"),
        (("why", "--storage", "mine.db", "--study", "empty", "x"), "got 'x'"),
        (("why", "--storage", "mine.db", "--study", "empty", "0"), "has no trial 0"),
        (("why", "quickstart"), "expected the number of a trial"),
        (
            ("status", "--storage", "mine.db", "--study", "empty", "--set", "trials=3"),
            "--set changes a study file",
        ),
        (("report", "--storage", "mine.db"), "got neither"),
    ],
)
def test_what_cannot_be_read_is_said(arguments, said, bo_act):
    storage = "sqlite:///mine.db"
    optuna.create_study(storage=storage, study_name="empty")
    foreign = optuna.create_study(storage=storage, study_name="foreign")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    optuna.create_study(storage=storage, study_name="several", directions=["minimize"] * 2)
    code, _, err = bo_act(*arguments)
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_a_study_without_a_result(bo_act):
    storage = "sqlite:///mine.db"
    study = optuna.create_study(storage=storage, study_name="mine")
    where = ("--storage", storage, "--study", "mine")
    for command in ("best", "status", "report"):
        assert bo_act(command, *where)[0] == 0
    assert "No function has been evaluated yet" in bo_act("best", *where)[1]
    space = package.load_space("classic")
    trial = study.ask()
    space.suggest(trial)
    study.tell(trial, state=TrialState.FAIL)
    for command in ("best", "status", "report"):
        assert bo_act(command, *where)[0] == 0
    with warnings.catch_warnings():
        assert open_storage(storage).get_all_studies()

"""The recipes for training frameworks run as they stand on their page."""

from __future__ import annotations

import shutil
import subprocess
import sys

import optuna
import pytest
import torch
from pages import ROOT, blocks, commands
from processes import environment

import bo_act

PAGE = ROOT / "docs" / "how_to" / "recipes.md"
OBJECTIVE, NETWORK, LIGHTNING, TRAINER, DISTRIBUTED, COMPILED = blocks(PAGE, "python")


def searched(recipe: str, **names) -> list[float]:
    """Search by the page's objective with a recipe's training; return the values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = bo_act.load_space("classic")
    names |= {"space": space, "__name__": "__main__"}
    for block in (OBJECTIVE, NETWORK, recipe):
        exec(block, names)
    sampler = bo_act.ActivationSampler(space, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(names["objective"], n_trials=2)
    again = names["train"](bo_act.Activation(space.activation_of(study.trials[0])), 0)
    assert again == pytest.approx(study.trials[0].value, abs=0.05)
    return [trial.value for trial in study.trials]


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    assert min(searched(LIGHTNING)) > 0.4


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    assert min(searched(TRAINER)) > 0.4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_narrow_and_checkpointed():
    assert min(searched(COMPILED)) > 0.4
    torch.compiler.reset()


@pytest.mark.slow
def test_two_processes_train_one_trial(tmp_path):
    (tmp_path / "ddp.py").write_text(DISTRIBUTED)
    (command,) = commands(blocks(PAGE, "bash")[0])
    assert command[0] == "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:]], cwd=tmp_path,
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="ddp", storage=f"sqlite:///{tmp_path}/ddp.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert len({trial.user_attrs["activation"] for trial in study.trials}) == 4
    assert min(trial.value for trial in study.trials) > 0.5
    assert len(done.stdout.splitlines()) == 4  # of the first process alone


def test_every_recipe_is_tried():
    """The other blocks of the page are what these need."""
    assert "lightning" in LIGHTNING
    assert "Trainer" in TRAINER
    assert "DistributedDataParallel" in DISTRIBUTED
    assert "torch.compile" in COMPILED

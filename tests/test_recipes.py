from __future__ import annotations

import pytest
from image_files import write_cifar, write_idx

from bo_act import library
from bo_act.activations.expressions import parse
from bo_act.networks import load_network
from bo_act.spec_files import read_study
from bo_act.study.task import Task

RECIPES = [name for name in library.names("studies") if name.startswith(("cifar", "fashion"))]


@pytest.mark.parametrize("name", library.names("studies"))
def test_shipped_studies_are_valid(name):
    spec = read_study(name)
    assert spec.name == name
    load_network(spec.model)


@pytest.mark.parametrize("name", [one for one in RECIPES if one.endswith(("_short", "all_cnn_c"))])
def test_recipes_train_on_files_of_the_same_form(name, tmp_path, monkeypatch):
    if name.startswith("cifar"):
        write_cifar(tmp_path, monkeypatch, classes=100 if "100" in name else 10)
    else:
        write_idx(tmp_path / "FashionMNIST" / "raw", packed=True)
    small = {"train": "8", "validation": "10", "root": str(tmp_path)}
    few = {"epochs": "1", "batch_size": "4", "threads": "1", "device": "cpu"}
    overrides = {f"data.{key}": value for key, value in small.items()}
    overrides |= {f"training.{key}": value for key, value in few.items()}
    task = Task.load(read_study(name, overrides))
    _, result = task.train(parse("swish(x)"), seed=0)
    assert result.status == "completed"
    assert len(result.curve) == 1

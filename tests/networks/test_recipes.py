from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_files import write_cifar, write_folders, write_idx

from bo_act import content
from bo_act.activations.expressions import parse
from bo_act.networks import load_network
from bo_act.specs.files import read_study
from bo_act.tasks.task import Task

RECIPES = [name for name in content.names("studies") if name.startswith(("cifar", "fashion"))]

ONE_OF_EACH_KIND = (
    "cifar10_all_cnn_c_short",
    "cifar100_resnet56_short",
    "fashion_mnist_all_cnn_c",
    "imagenette_mobilevitv2_short",
    "imagenette_coatnet_short",
    "imagenet_mobilevitv2_short",
)

FEW = """
name = "few"
expressions = ["relu(x)", "tanh(x)", "swish(x)"]
baselines = ["relu(x)"]
"""


@pytest.mark.parametrize("name", content.names("studies"))
def test_shipped_studies_are_valid(name):
    spec = read_study(name)
    assert spec.name == name
    load_network(spec.model)


def write_files(name: str, root: Path, monkeypatch) -> None:
    """Write small files of the form that a recipe's data set has."""
    if name.startswith("cifar"):
        write_cifar(root, monkeypatch, classes=100 if "100" in name else 10)
    elif name.startswith("fashion"):
        write_idx(root / "FashionMNIST" / "raw", packed=True)
    else:
        write_folders(root / "imagenette2-160" if name.startswith("imagenette") else root)


@pytest.mark.parametrize("name", [one for one in RECIPES if one.endswith(("_short", "all_cnn_c"))])
def test_recipes_train_on_files_of_the_same_form(name, tmp_path, monkeypatch):
    write_files(name, tmp_path, monkeypatch)
    small = {"train": "8", "validation": "10", "root": str(tmp_path)}
    few = {"epochs": "1", "batch_size": "4", "threads": "1", "device": "cpu"}
    overrides = {f"data.{key}": value for key, value in small.items()}
    overrides |= {f"training.{key}": value for key, value in few.items()}
    task = Task.load(read_study(name, overrides))
    _, result = task.train(parse("swish(x)"), seed=0)
    assert result.status == "completed"
    assert len(result.curve) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not covered by the Fisher matrix")  # of the CoAtNet
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_recipe_runs_from_end_to_end(name, tmp_path, monkeypatch, bo_act):
    """Spectra, search, confirmation and report, with the shipped file, on a few images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(FEW)
    write_files(name, tmp_path / "files", monkeypatch)
    given = read_study(name)
    changes = {
        "trials": 2,
        "space": "few.toml",
        "data.root": "files",
        "data.train": 12,
        "data.validation": 10,
        "training.epochs": 1,
        "training.batch_size": 4,
        "training.threads": 1,
        "training.device": "cpu",
        "features.batch_size": 2,
        "confirm.top": 1,
        "confirm.seeds": 1,
        "confirm.baselines": "[]",
    }
    if given.data.in_folders:
        changes |= {"data.image_size": 64, "data.workers": 0}
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    code, out, err = bo_act("run", name, "--quiet", "--json", *settings)
    assert code == 0, err
    found = json.loads(out)
    assert (found["trials"]["complete"], found["trials"]["failed"]) == (2, 0)
    assert found["best"]["value"] is not None
    assert {row["activation"] for row in found["confirmed"]} >= {"relu(x)"}
    assert all(row["seeds"] == 1 for row in found["confirmed"])
    code, out, err = bo_act("report", name, "--quiet", *settings)
    assert (code, out.strip()) == (0, f"runs/{name}/report.html"), err
    page = Path("runs", name, "report.html").read_text()
    assert found["confirmed"][0]["activation"] in page
    assert "Fisher" in page

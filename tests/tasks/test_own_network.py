"""Fisher spectra of a network and batch of the user's own: ``features.of`` in a study file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from pydantic import ValidationError
from small_studies import STORAGE

from bo_act.errors import BoActError, FeatureError, NetworkError, SpecError, StorageError
from bo_act.features.compute import compute_features
from bo_act.specs import FeaturesSpec, StudySpec
from bo_act.study.running.runner import run_study
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

FILE = """
import torch
from torch import nn


def train(trial, activation, *, seed):
    return float(activation(torch.tensor([0.3])))


def network_and_batch(activation, *, seed):
    network = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 8), activation(), nn.Linear(8, 11))
    tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(seed))
    {returns}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(returns: str = "return network, tokens", file: str = FILE, **changes) -> StudySpec:
    Path("my_train.py").write_text(file.replace("{returns}", returns))
    content = {
        "name": "own",
        "space": "classic",
        "trials": 3,
        "storage": STORAGE,
        "objective": "my_train.py:train",
        "features": {"of": "my_train.py:network_and_batch", "quantiles": 16, "seed": 5},
        "confirm": {"seeds": 0},
        "training": {"device": "cpu", "threads": 1},
    }
    return StudySpec.model_validate(content | changes)


def test_an_objective_has_spectra_of_its_own_network():
    spec = make()
    table = Task.load(spec).features()
    assert table.provenance["layers"] == ("0", "1", "3")

    def network(activation):
        nn = torch.nn
        layers = nn.Embedding(11, 6), nn.Linear(6, 8), activation(), nn.Linear(8, 11)
        return nn.Sequential(*layers)

    tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(5))
    expected = compute_features(
        Task.load(spec).space,
        network=network,
        inputs=tokens,
        spec=FeaturesSpec(quantiles=16, seed=5),
    )
    for name in ("fim", "fim_null"):
        np.testing.assert_array_equal(table.blocks[name].values, expected.blocks[name].values)
    result = run_study(spec)
    assert result.trials.complete == 3


def test_targets_tell_the_loss_and_the_file_names_it_where_they_do_not():
    regression = FILE.replace("nn.Linear(8, 11))", "nn.Linear(8, 1), nn.Flatten(1))")
    numbers = make("return network, tokens, torch.rand(4, 5)", regression)
    assert Task.load(numbers).features().provenance["options"]["loss"] == "mse"
    one = FILE.replace("nn.Embedding(11, 6), nn.Linear(6, 8)", "nn.Linear(5, 8)").replace(
        "nn.Linear(8, 11))", "nn.Linear(8, 1))"
    )
    with pytest.raises(FeatureError, match=r"features.of: .*my_train\.py: .*features\.loss"):
        run_study(make("return network, tokens.float()", one))
    features = {"of": "my_train.py:network_and_batch", "quantiles": 16, "loss": "mse"}
    spec = make("return network, tokens.float()", one, features=features)
    assert Task.load(spec).features().provenance["options"]["loss"] == "mse"


def test_it_comes_before_the_study_files_network():
    spec = make(
        model={"name": "mlp", "options": {"widths": [8]}},
        data={"name": "digits", "train": 100, "validation": 50},
    )
    assert Task.load(spec).features().provenance["layers"] == ("0", "1", "3")


def test_a_changed_file_is_refused():
    own = {"of": "net.py:network_and_batch", "quantiles": 16}
    Path("net.py").write_text(FILE.replace("{returns}", "return network, tokens"))
    spec = make(features=own)
    run_study(spec)
    Path("net.py").write_text(FILE.replace("{returns}", "return network, tokens[:3]"))
    more = spec.model_copy(update={"trials": 4})
    with pytest.raises(StorageError, match=r"the file of features\.of changed since"):
        run_study(more)
    other = StudySpec.model_validate(more.model_dump() | {"features": {"quantiles": 16}})
    with pytest.raises(StorageError, match=r"features\.of was 'net\.py:network_and_batch'"):
        run_study(other)


def test_the_cache_knows_what_the_file_reads():
    Path("width").write_text("8")
    file = FILE.replace("nn.Linear(6, 8)", "nn.Linear(6, int(open('width').read()))").replace(
        "nn.Linear(8, 11)", "nn.Linear(int(open('width').read()), 11)"
    )
    spec = make(file=file)
    first = Task.load(spec).features()
    Path("width").write_text("12")
    second = Task.load(spec).features()
    assert not np.array_equal(first.blocks["fim"].values, second.blocks["fim"].values)
    Path("width").write_text("8")
    third = Task.load(spec).features()
    np.testing.assert_array_equal(first.blocks["fim"].values, third.blocks["fim"].values)


@pytest.mark.slow
def test_workers_compute_the_same():
    Path("parts.py").write_text("WIDTH = 8\n")
    spec = make(file="from parts import WIDTH\n" + FILE.replace("(6, 8)", "(6, WIDTH)"))
    alone = Task.load(spec).features()
    task = Task.load(spec)
    shutil.rmtree(os.environ["BO_ACT_CACHE_DIR"])
    Path("my_train.py").unlink()  # what was read travels
    found = task.features(workers=2)
    np.testing.assert_array_equal(found.blocks["fim"].values, alone.blocks["fim"].values)


def test_several_activations_come_by_name():
    file = FILE.replace("activation()", "activation['early']()").replace(
        "nn.Linear(8, 11))", "nn.Linear(8, 11), activation['late']())"
    )
    spec = make(file=file, activations=("early", "late"))
    assert "fim" in Task.load(spec).features().blocks


def test_lazy_layers_and_state_that_is_no_tensor():
    lazy = FILE.replace("nn.Linear(6, 8)", "Noted(), nn.LazyLinear(8)").replace(
        "def network_and_batch",
        """class Noted(nn.Module):
    def forward(self, x):
        return x

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def network_and_batch""",
    )
    table = Task.load(make(file=lazy)).features()
    assert table.provenance["layers"] == ("0", "2", "4")
    again = Task.load(make(file=lazy)).features()
    np.testing.assert_array_equal(again.blocks["fim"].values, table.blocks["fim"].values)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ("return network", r"\(network, inputs, targets\).* got Sequential"),
        ("return tokens, network", r"got \(Tensor, Sequential\)"),
        ("return network, tokens, None, 1", r"got \(Sequential, Tensor, NoneType, int\)"),
        ("return network, None", "needs? a batch"),
        ("return network, 'tokens'", "a dict or tuple of them as inputs"),
        ("return network.to('meta'), tokens", "'0.weight' on the meta device; build"),
        ("1 / 0", r"ZeroDivisionError: .*\(my_train.py, line 13\)"),
        ("return nn.ReLU(), torch.rand(3, 2)", "the logits have no gradient"),
    ],
)
def test_what_is_returned_wrongly_is_told_on_one_line(returns, says):
    with pytest.raises(BoActError, match=says) as error:
        run_study(make(returns))
    assert "my_train.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_of_other_arguments_is_told():
    file = FILE.replace("(activation, *, seed)", "(activation, *, images)")
    with pytest.raises(NetworkError, match=r"some of activation, seed, .* needs 'images'"):
        run_study(make(file=file))
    with pytest.raises(SpecError, match="got no function 'network_and_batches'"):
        run_study(make(features={"of": "my_train.py:network_and_batches"}))


def test_where_no_spectra_are_computed_it_is_refused():
    with pytest.raises(ValidationError, match="fim = false"):
        FeaturesSpec(of="a.py:f", fim=False)
    with pytest.raises(SpecError, match=r"features.of: .*candidates = 'trees'"):
        run_study(make(candidates="trees"))
    with pytest.raises(FeatureError, match="is for study files"):
        compute_features(Task.load(make()).space, spec=FeaturesSpec(of="a.py:f"))

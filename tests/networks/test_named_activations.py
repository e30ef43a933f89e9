"""Networks that name their activations, and studies that search a function for each."""

from __future__ import annotations

import pytest
import torch
from made_up import TASK
from torch import nn

from bo_act.activations.expressions import parse
from bo_act.activations.module import Activation
from bo_act.errors import NetworkError, SpecError
from bo_act.networks import load_network
from bo_act.specs import ModelSpec
from bo_act.specs.files import read_study
from bo_act.study.results.confirmation import FRESH
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.task import Task

SHAPE = {"in_channels": 1, "image_size": 8, "num_classes": 10, "seed": 0}
TWO = {"early": nn.Tanh, "late": nn.ReLU}


def kinds(network: nn.Module) -> list[type]:
    return [type(module) for module in network.modules() if isinstance(module, nn.Tanh | nn.ReLU)]


def test_each_name_has_its_own_function():
    network = load_network(ModelSpec(name="two_stage_mlp"))(TWO, **SHAPE)
    assert kinds(network) == [nn.Tanh, nn.Tanh, nn.ReLU, nn.ReLU]
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert f"{parameters:,}" in load_network(ModelSpec(name="two_stage_mlp")).file.source.decode()


def test_one_function_stands_in_all_named_places():
    network = load_network(ModelSpec(name="two_stage_mlp"))(nn.Tanh, **SHAPE)
    assert kinds(network) == [nn.Tanh] * 4


@pytest.mark.parametrize(
    ("name", "given_", "message"),
    [
        ("two_stage_mlp", {"early": nn.ReLU, "lat": nn.ReLU}, r"'late'.*early, lat.*'lat'"),
        ("two_stage_mlp", {**TWO, "last": nn.ReLU}, r"never called activation\('last'\).*early"),
        ("mlp", TWO, r"activation\(\) without a name.*early, late"),
    ],
)
def test_names_that_do_not_match(name, given_, message):
    with pytest.raises(NetworkError, match=message) as error:
        load_network(ModelSpec(name=name))(given_, **SHAPE)
    assert "\n" not in str(error.value)


# --- study files ----------------------------------------------------------------------------

NETWORK = TASK.replace("mlp", "two_stage_mlp").replace("widths = [8]", "early = [8], late = [8]")
STUDY = f"""
name = "stages"
space = "classic"
trials = 16
activations = ["early", "late"]
{NETWORK}
[features]
fim = false
[confirm]
top = 16
seeds = 1
baselines = ["tanh(x)"]
"""


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stages.toml"
    path.write_text(STUDY)
    return str(path)


def test_a_study_of_two_activations(study_file, bo_act):
    spec = read_study(study_file)
    assert spec.model.name == "two_stage_mlp"
    result = run_study(spec)
    trials = load_study(spec).trials
    space = Task.load(spec).space
    for trial in trials:
        for name in spec.activations:
            found = str(space.suggest_expression(trial, name))
            assert trial.user_attrs[f"{name}.activation"] == found
    baselines = len(space.baselines)
    assert trials[0].user_attrs["activation"] == str(space.baselines[0])  # the same everywhere
    apart = [t for t in trials[baselines:] if "early: " in t.user_attrs["activation"]]
    assert apart
    assert result.baseline.value is not None  # ReLU in both, as a baseline
    # What is confirmed is what was searched, each function in its place.
    one = next(c for c in result.confirmed if c.activation.startswith("early: "))
    trial = next(t for t in apart if t.user_attrs["activation"] == one.activation)
    functions = {name: parse(trial.user_attrs[f"{name}.activation"]) for name in spec.activations}
    task = Task.load(spec)
    network, again = task.train(functions, seed=FRESH)
    standing = [one.expression for one in network.modules() if isinstance(one, Activation)]
    assert standing == [functions["early"], functions["late"]]
    assert one.validation.mean == again.value
    assert read_result(spec) == result
    code, out, _ = bo_act("best", study_file)
    assert code == 0
    assert "early: " in out
    code, out, _ = bo_act("why", study_file, str(trial.number))
    assert code == 0
    assert "late.outputs" in out


def test_text_names_places_where_functions_differ():
    relu, tanh = parse("relu(x)"), parse("tanh(x)")
    assert Configuration({"": relu}).text == "relu(x)"
    assert Configuration({"a": relu, "b": relu}).text == "relu(x)"
    assert Configuration({"a": relu, "b": tanh}).text == "a: relu(x), b: tanh(x)"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activations", '["a", "a"]', "each name once"),
        ("activations", '["a.b"]', "activations.0"),
        ("strategy.name", "evolution", "only the strategy 'model'"),
        ("acquisition.per_second", "true", "per_second needs a list .* when activations are"),
        ("acquisition.name", "knowledge_gradient", "'knowledge_gradient' needs a list"),
    ],
)
def test_activations_that_cannot_be_searched(study_file, key, value, message):
    with pytest.raises(SpecError, match=message):
        read_study(study_file, {key: value})


def test_names_of_the_study_that_the_network_has_not(study_file):
    with pytest.raises(NetworkError, match=r"activation\('early'\).*first, late"):
        run_study(read_study(study_file, {"activations": '["first", "late"]'}))

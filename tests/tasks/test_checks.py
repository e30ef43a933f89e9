"""What is wrong with a study's files is told before its first trial, on one line."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
import torch
from small_studies import STORAGE
from studies_of_tests import FEW

from bo_act.activations.module import Activation
from bo_act.benchmark.build import build_benchmark
from bo_act.data.loading import load_data
from bo_act.errors import BoActError, DataError, NetworkError, SpecError
from bo_act.networks import load_network
from bo_act.specs import DataSpec, MetricSpec, ModelSpec, StudySpec
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.checks import check_before_search, check_trains
from bo_act.tasks.objective import Measured, Objective
from bo_act.tasks.task import StudyNetwork, Task

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(FEW)


def refused(spec: StudySpec, kind: type[BoActError], says: str) -> str:
    """Run a study that is refused on one line, before any trial."""
    with pytest.raises(kind, match=says) as caught:
        run_study(spec)
    assert load_study(spec).trials == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- training functions ---------------------------------------------------------------------


def objective(text: str) -> Objective:
    Path("mine.py").write_text(f"import decimal, fractions, torch\nimport numpy as np\n{text}\n")
    return Objective.load("mine.py:objective")


def returned(text: str) -> float:
    found = objective(f"def objective(trial, activation):\n    return {text}")
    return found(None, {}, {})


@pytest.mark.parametrize(
    "text",
    [
        "None", "'good'", "'0.5'", "b'1'", "True", "np.True_", "torch.tensor(True)", "[[1]]", "{}",
        "[]", "[True]", "np.ones((2, 2))", "torch.ones(1, device='meta')", "1j",
        "np.complex128(1j)", "torch.tensor(1j)", "10**400", "10**5000",
        "fractions.Fraction(10**400)", "object()",
        "np.datetime64('2020-01-01')", "print", "np.array(['0.5'])",
    ],
)  # fmt: skip
def test_what_is_no_number_is_told(text):
    with pytest.raises(SpecError, match=r"mine\.py: expected the objective \(line 3\)") as caught:
        returned(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "1 / 2", "np.float32(0.5)", "np.array(0.5)", "np.array([0.5])", "torch.tensor(0.5)",
        "torch.tensor([0.5], requires_grad=True)", "torch.tensor(0.5, dtype=torch.bfloat16)",
        "fractions.Fraction(1, 2)", "decimal.Decimal('0.5')",
    ],
)  # fmt: skip
def test_what_is_a_number_is_taken(text):
    assert returned(text) == Measured(0.5)


def test_whole_numbers_and_none_that_are_finite():
    assert returned("3") == returned("np.int64(3)") == returned("[3]") == Measured(3.0)
    assert math.isnan(returned("float('nan')").value)
    assert not math.isfinite(returned("torch.tensor(float('inf'))").value)
    assert returned("torch.ones(2)") == Measured(1.0, (1.0, 1.0))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("def objective(trial):", "too many positional arguments"),
        ("def objective():", "too many positional arguments"),
        ("def objective(trial, activation, *, sede):", "asks for sede; .* seed, device"),
        ("def objective(trial, activation, seed, /):", "with other arguments"),
        ("async def objective(trial, activation):", "is a coroutine function"),
        ("objective = 3\ndef other():", "got no function 'objective'"),
    ],
)
def test_a_function_that_cannot_be_called_is_told_before_the_first_trial(head, says):
    Path("mine.py").write_text(f"{head}\n    return 0.5\n")
    spec = StudySpec.model_validate(
        {"name": "own", "space": "few.toml", "trials": 3, "objective": "mine.py:objective"}
    )
    if "objective =" in head:
        with pytest.raises(SpecError, match=says):
            run_study(spec)
    else:
        refused(spec, SpecError, says)


def test_generators_are_no_objectives():
    found = objective("def objective(trial, activation):\n    yield 0.5")
    with pytest.raises(SpecError, match="is a generator function"):
        found.check({})


@pytest.mark.parametrize(
    "head", ["(trial, activation, *more)", "(*all, **context)", "(t, a, seed=1)"]
)
def test_functions_that_take_what_comes_can_be_called(head):
    objective(f"def objective{head}:\n    return 0.5").check({"seed": 0, "device": "cpu"})


def test_values_that_are_all_the_same_are_warned_of():
    Path("mine.py").write_text("def objective(trial, activation):\n    return 0.25\n")
    spec = StudySpec.model_validate(
        {"name": "own", "space": "few.toml", "trials": 7, "objective": "mine.py:objective"}
    )
    with pytest.warns(UserWarning, match=r"first 5 functions all have the value 0\.25: does mine"):
        assert run_study(spec).trials.complete == 7
    Path("mine.py").write_text(
        "import torch\ndef objective(trial, activation):\n"
        "    return float(activation()(torch.ones(1)))\n"
    )
    run_study(spec.model_copy(update={"name": "other"}))  # a warning would be an error


# --- networks -------------------------------------------------------------------------------

HEAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, activation, num_classes):
        super().__init__()
        self.act, self.last = activation(), nn.Linear(64, num_classes)
"""
TAIL = """
def build(activation, *, in_channels, image_size, num_classes):
    return Net(activation, num_classes)
"""
BODY = "x = self.act(x.flatten(1))\nreturn self.last(x)"


def net(body: str, init: str = "pass", **changes) -> StudySpec:
    """A study whose network has these lines in ``forward``, of which line 11 is the first."""
    lines = "".join(f"        {line}\n" for line in [*init.splitlines(), "", ""][:1])
    lines += "    def forward(self, x):\n"
    lines += "".join(f"        {line}\n" for line in body.splitlines())
    return whole(HEAD + lines + TAIL, **changes)


def whole(text: str, **changes) -> StudySpec:
    Path("net.py").write_text(text)
    content = {
        "name": "net",
        "space": "few.toml",
        "trials": 2,
        "storage": STORAGE,
        "model": {"name": "net.py"},
        "data": {"name": "digits", "train": 128, "validation": 100},
        "training": {"epochs": 1, "batch_size": 64, "threads": 1, "device": "cpu"},
        "features": {"fim": False},
        "confirm": {"top": 1, "seeds": 1, "baselines": ["relu(x)"]},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = {**content[key], **value} if both else value
    return StudySpec.model_validate(content)


RAISED = {
    "SystemExit": "raise SystemExit",
    "SystemExit: 0": "raise SystemExit(0)",
    "GeneratorExit": "raise GeneratorExit",
    "AssertionError": "assert x.sum() == 3, 'no'",
    "StopIteration": "next(iter([]))",
    "RecursionError": "return self.forward(x)",
    "RuntimeError": "return self.last(x.flatten(1)[:, :3])",
    "KeyError": "{}['a']",
    "ZeroDivisionError": "1 / 0",
}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("when", ["", "if self.training: "])
def test_what_a_network_raises_is_told_with_its_line(raised, when):
    said = refused(net(f"{when}{RAISED[raised]}\n{BODY}"), NetworkError, raised)
    assert "(net.py, line 11)" in said


@pytest.mark.parametrize("raised", ["raise SystemExit", "assert False", "next(iter([]))", "1 / 0"])
def test_what_build_raises_is_told_with_its_line(raised):
    text = f"def build(activation, *, in_channels, image_size, num_classes):\n    {raised}\n"
    assert "(net.py, line 2)" in refused(whole(text), NetworkError, "build failed")


def test_what_a_backward_pass_raises_is_told_with_its_line():
    function = (
        "class Bad(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n"
        "    @staticmethod\n    def backward(ctx, g):\n        raise SystemExit\n"
    )
    spec = whole(
        HEAD.replace("class Net", f"{function}\nclass Net")
        + "    def forward(self, x):\n"
        + "        return self.last(Bad.apply(self.act(x.flatten(1) * self.last.bias[0])))\n"
        + TAIL
    )
    assert "net.py, line 11" in refused(spec, NetworkError, "SystemExit")


def test_logits_are_looked_at_in_training_as_well():
    spec = net("x = self.last(self.act(x.flatten(1)))\nreturn (x, x) if self.training else x")
    refused(spec, NetworkError, "got tuple")


@pytest.mark.parametrize(
    "body",
    [
        "return self.last(x.flatten(1))",  # built, and never called
        "self.act(x)\nreturn self.last(x.flatten(1))",  # called, and left
        "return self.last(x.flatten(1)) + 0 * self.act(x).mean()",
        "return self.last(torch.relu(x.flatten(1)))",  # another in its place
    ],
)
def test_an_activation_that_changes_nothing_is_told(body):
    refused(net(body), NetworkError, r"net\.py: the network computes the same with relu")


@pytest.mark.parametrize(
    ("body", "init"),
    [
        (BODY, "nn.init.zeros_(self.last.weight)"),  # logits of zero, whatever the function
        ("return self.last(x.flatten(1) + 1e-6 * self.act(x.flatten(1)))", ""),
        (
            "x = x.flatten(1)\n"
            "if not self.training or torch.rand(()) < 0: x = x + self.act(x)\n"
            "return self.last(x)",
            "",
        ),  # a layer that is dropped in every such step
        ("return self.last(nn.functional.dropout(self.act(x.flatten(1)), 0.5))", ""),
    ],
)
def test_one_that_matters_little_at_first_is_none(body, init):
    check_trains(Task.load(net(body, init)))


def test_each_of_several_activations_has_to_matter():
    text = HEAD.replace("activation()", "activation('early')").replace(
        "nn.Linear(64, num_classes)",
        "nn.Linear(64, num_classes)\n        self.b = activation('late')",
    )
    forward = "    def forward(self, x):\n        x = self.act(x.flatten(1))\n"
    late = "        {}self.b(x)\n        return self.last(x)\n"
    names = {"activations": ["early", "late"]}
    check_trains(Task.load(whole(text + forward + late.format("x = ") + TAIL, **names)))
    spec = whole(text + forward + late.format("") + TAIL, **names)
    refused(spec, NetworkError, r"does not use activation\('late'\)")


NORMED = """
from torch import nn
def build(activation, *, in_channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), activation(),
        nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"batch_size": 1}},
        {"training": {"micro_batch": 1}},
        {"training": {"micro_batch": 63}},  # and one image more
        {"data": {"train": 1}},
    ],
)
def test_a_norm_over_one_image_is_told(changes):
    said = refused(whole(NORMED, **changes), NetworkError, "more than 1 value per channel")
    assert "two images at a time" in said


def test_a_last_batch_of_one_image_is_left_out():
    spec = whole(NORMED, data={"train": 129})
    assert run_study(spec).trials.complete == 2


LAZY = """
from torch import nn
def build(activation, *, in_channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), activation(),
        nn.LazyLinear(num_classes))
"""


@pytest.mark.parametrize("init", ["default", "unit_variance"])
def test_lazy_layers_get_their_weights_from_the_seed(init):
    spec = whole(LAZY, model={"init": init}, features={"fim": True, "batch_size": 32})
    assert run_study(spec).confirmed

    def weights(seed: int) -> list[torch.Tensor]:
        network = Task.load(spec).network(seed=seed)(lambda: Activation("relu(x)"))
        return list(network.parameters())

    before = torch.get_rng_state()
    one, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])


def test_lazy_layers_that_are_not_used_are_told():
    Path("net.py").write_text(HEAD.replace("nn.Linear(64", "nn.LazyLinear(8), nn.LazyLinear(")[:-1])
    text = HEAD.replace(
        "nn.Linear(64, num_classes)",
        "nn.Linear(64, num_classes)\n        self.b = nn.LazyLinear(2)",
    )
    text += "    def forward(self, x):\n        return self.last(self.act(x.flatten(1)))\n" + TAIL
    refused(whole(text), NetworkError, "does not use the lazy layer of 'b.weight'")


def test_shipped_networks_pass_the_checks():
    for name in ("mlp", "small_cnn"):
        spec = whole("", model={"name": name})
        check_before_search(Task.load(spec))


def test_a_benchmark_is_checked_as_well():
    with pytest.raises(NetworkError, match=r"net\.py, line 11"):
        build_benchmark(net("if self.training: 1 / 0\n" + BODY), seeds=1)
    with pytest.raises(NetworkError, match="computes the same"):  # mended, and still not right
        build_benchmark(net("return self.last(x.flatten(1))"), seeds=1)


# --- data -----------------------------------------------------------------------------------

GOOD = "images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 4"


def data(body: str, **changes) -> StudySpec:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    Path("mine.py").write_text(f"import numpy as np, torch\n\ndef load(*, train):\n{lines}")
    return whole(
        NORMED, data={"name": "mine.py:load", "train": None, "validation": None, **changes}
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return None", "TypeError: cannot unpack"),
        ("return images", "NameError"),
        (f"{GOOD}\nreturn images", "too many values to unpack"),
        (f"{GOOD}\nreturn images, labels, labels", "too many values to unpack"),
        (f"{GOOD}\nreturn images, None", "RuntimeError|TypeError"),
        (f"{GOOD}\nreturn 'images', labels", "expected load"),
        (f"{GOOD}\nreturn images, [['a']] * 40", "expected load"),
        (f"{GOOD}\nreturn images, labels - 1", "whole numbers from 0, .*from -1"),
        (f"{GOOD}\nreturn images, labels[:-1]", "expected 40 labels"),
        (f"{GOOD}\nreturn images, labels[:, None]", r"labels in one column need the shape \(40,\)"),
        (f"{GOOD}\nreturn images, labels[:, None, None]", r"shape \(40,\), or tokens"),
        (f"{GOOD}\nreturn images[:0], labels[:0]", "at least one"),
        (f"{GOOD}\nreturn images[:, :0], labels", "at least one"),
        (f"{GOOD}\nreturn {{}}, labels", "an empty dict"),
        (f"{GOOD}\nreturn (), labels", "an empty tuple"),
        (f"{GOOD}\nreturn (images, images[1:]), labels", "the same number of samples"),
        (f"{GOOD}\nreturn images[0], labels", "expected 1 labels"),
        (f"{GOOD}\nreturn images, labels / 0", "expected finite targets, .* 40 of them not"),
        (f"{GOOD}\nreturn images[:, 0] / 0, labels", "expected finite inputs"),
        (f"{GOOD}\nreturn images, labels * 1j", "real numbers"),
        (f"{GOOD}\nimages[3] = float('nan')\nreturn images, labels", "got 64 not finite"),
        (f"{GOOD}\nreturn images * 255, labels", "numbers from 0 to 1, got"),
        (f"{GOOD}\nreturn images, labels * 10**9", "one of 3000000000 among 40 images"),
        (f"{GOOD}\nreturn images * 0, labels", "have the same gray value"),
        (f"{GOOD}\nreturn images[:5], labels[:5] * 0", "too few to hold out a tenth"),
        ("raise SystemExit", r"SystemExit \(mine\.py, line 4\)"),
        ("raise MemoryError", r"MemoryError \(mine\.py, line 4\)"),
        ("raise ConnectionResetError('gone')", r"gone \(mine\.py, line 4\)"),
        ("raise SystemExit(0)", r"SystemExit: 0 \(mine\.py, line 4\)"),
        ("assert False", r"AssertionError \(mine\.py, line 4\)"),
        ("return next(iter([]))", r"StopIteration \(mine\.py, line 4\)"),
        ("return torch.ones(2, 3) @ torch.ones(4, 5)", r"RuntimeError: mat1.*mine\.py, line 4"),
    ],
)
def test_nonsense_for_data_is_told(body, says):
    with pytest.raises(DataError, match=says) as caught:
        run_study(data(body))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("images, labels.float()", "'num_classes', .* image_size = 8, out_features = 1.*classes"),
        ("images, torch.eye(40)", "'num_classes', .* out_features = 40"),
        ("images[..., :5], labels", "'in_channels', .* num_classes = 4, .*images are square"),
        ("images.flatten(1), labels", "'in_channels', .* in_features = 64"),
        ("images.to(torch.complex64), labels", "'in_channels'"),
        ("{'x': images}, labels", r"'in_channels', .* input_shape = \{'x': \(1, 8, 8\)\}"),
    ],
)
def test_data_of_another_kind_than_the_network_is_for_are_told_with_their_facts(returned, says):
    spec = data(f"{GOOD}\nreturn {returned}")
    if "out_features" in says:
        spec = spec.model_copy(update={"metric": MetricSpec(name="mse")})
    refused(spec, NetworkError, f"build asks for {says}")


@pytest.mark.parametrize(
    "change",
    [
        "images = images.requires_grad_()", "images = images.numpy()", "labels = labels.tolist()",
        "labels = labels.byte()", "labels = labels > 1", "images = (255 * images).byte().numpy()",
        "images = images.half()", "images = images.round().to_sparse()",
    ],
)  # fmt: skip
def test_data_in_any_form_is_taken(change):
    spec = data(f"{GOOD}\n{change}\nreturn images, labels")
    Task.load(spec).data.load_test()


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("labels = labels + 3", "among the 4 classes .* got 6"),
        ("images = torch.rand(40, 1, 9, 9)", r"shape \(1, 8, 8\), .* got \(1, 9, 9\)"),
        ("images = torch.rand(40, 3, 8, 8)", r"shape \(1, 8, 8\), .* got \(3, 8, 8\)"),
        (
            "labels = labels.float()",
            "mine.py:load, with train = False: expected whole numbers as labels",
        ),
        ("images = images[:0]", "at least one"),
        ("return None", "cannot unpack"),
        ("raise SystemExit", r"SystemExit \(mine\.py, line 5\)"),
        ("1 / 0", r"ZeroDivisionError.*\(mine\.py, line 5\)"),
    ],
)
def test_test_images_that_do_not_fit_are_told_before_the_first_trial(test, says):
    spec = data(f"{GOOD}\nif not train: {test}\nreturn images, labels")
    refused(spec, DataError, says)
    # Where nothing is confirmed, nobody asks for them.
    quiet = spec.model_copy(update={"confirm": spec.confirm.model_copy(update={"seeds": 0})})
    assert run_study(quiet).trials.complete == 2


def test_a_source_that_is_known_passes():
    found = load_data(DataSpec(name="digits"))
    assert len(found.load_test()) == 359


# --- the confirmation -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["reluu(x)", "relu(", "", "relu(x, x)"])
def test_a_baseline_that_is_no_function_is_told_before_the_first_trial(text):
    spec = whole(NORMED, confirm={"baselines": ["relu(x)", text]})
    refused(spec, SpecError, r"confirm\.baselines: ")


def test_a_baseline_need_not_be_of_the_space():
    spec = whole(NORMED, confirm={"baselines": ["gelu(x)"]})
    assert [row.activation for row in run_study(spec).confirmed][-1] == "gelu(x)"


def test_checks_leave_the_random_state_and_build_anew():
    task = Task.load(whole(NORMED))
    before = torch.get_rng_state()
    check_before_search(task)
    assert torch.equal(before, torch.get_rng_state())
    builder = load_network(ModelSpec(name="net.py"))
    network = StudyNetwork(builder, task.data.facts, task.data.example, 0)
    assert isinstance(network(torch.nn.ReLU), torch.nn.Module)


def test_what_fails_when_weights_are_set_is_told_with_its_line():
    said = refused(
        net(f"1 / 0\n{BODY}", model={"init": "unit_variance"}), NetworkError, "model.init"
    )
    assert "(net.py, line 11)" in said


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_network_that_has_no_features_with_some_functions_is_told(workers):
    spec = net(
        "x = self.act(x.flatten(1))\nassert (x.abs() < 9).all(), 'too large'\nreturn self.last(x)",
        features={"fim": True, "batch_size": 32, "quantiles": 8},
    )
    with pytest.raises(NetworkError, match=r"too large \(net\.py, line 12\); fix it, or turn"):
        Task.load(spec).features(workers=workers)


@pytest.mark.parametrize("fault", ["MemoryError", "OSError(28, 'No space left on device')"])
def test_a_machine_that_is_at_fault_now_may_be_well_in_the_first_trial(fault):
    """Neither is what it did in the checks the file's fault, nor what it does in a trial."""
    text = HEAD + "        COUNT.append(1)\n        if len(COUNT) < 4: raise FAULT\n"
    text = text.replace("class Net", f"COUNT, FAULT = [], {fault}\nclass Net")
    spec = whole(
        text + "    def forward(self, x):\n        return self.last(self.act(x.flatten(1)))" + TAIL
    )
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (2, 1)
    assert result.failures[0].blame == "machine"

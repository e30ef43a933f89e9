"""Trainings that are stopped, killed or short of memory, and what else a recipe can ask for."""

from __future__ import annotations

import io
import json
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import killed_ten_times
from torch import nn

from bo_act.data.loading import Data, load_data
from bo_act.data.samples import SampleSet
from bo_act.errors import NetworkError
from bo_act.io import write_checked
from bo_act.specs import DataSpec, TrainingSpec
from bo_act.training import trainer
from bo_act.training.checkpoint import Checkpoint
from bo_act.training.outcomes import TrainingStopped
from bo_act.training.trainer import TrainingResult, train


@pytest.fixture(scope="module")
def data() -> Data:
    digits = load_data(DataSpec(name="digits"))
    few = SampleSet(digits.train.inputs[:320], digits.train.targets[:320])
    return replace(digits, train=few)


def recipe(**values: object) -> TrainingSpec:
    fixed = {"epochs": 4, "batch_size": 64, "device": "cpu", "threads": 1}
    return TrainingSpec.model_validate(fixed | values)


def network(*, extra: Callable[[], nn.Module] = nn.Identity, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        extra(),
        nn.Flatten(),
        nn.Linear(216, 10),
    )


def numbers(result: TrainingResult) -> tuple:
    return result.status, result.curve, result.train_loss, result.value


def weights(net: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in net.state_dict().values())


class After:
    """Says stop after so many questions."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


RECIPES = {
    "plain": {},
    "dropout": {"label_smoothing": 0.1},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    "average": {"ema": 0.8, "gradient_clip": 0.5},
    "float16": {"precision": "float16", "micro_batch": 24},
}


# --- stopped --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_training_goes_on_bit_for_bit(data, tmp_path, name):
    spec = recipe(**RECIPES[name])

    def build() -> nn.Module:
        return network(extra=lambda: nn.Dropout(0.3) if name == "dropout" else nn.Identity())

    whole = build()
    undisturbed = train(whole, data, spec, seed=3)
    checkpoint = Checkpoint(tmp_path / "one.pt", "key")
    randomness = random.Random(name)
    stops = 0
    while True:
        net = build()
        after = After(randomness.randrange(1, 9))  # five steps are an epoch
        try:
            result = train(net, data, spec, seed=3, checkpoint=checkpoint, stop=after)
            break
        except TrainingStopped:
            stops += 1
            assert checkpoint.path.exists()
    assert stops >= 2
    assert numbers(result) == numbers(undisturbed)
    assert weights(net) == weights(whole)
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_left_is_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 0.0)
    monkeypatch.setattr("bo_act.training.checkpoint.SAVING_SHARE", float("inf"))
    steps: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                steps.append(len(x))
            return x

    def die(epoch: int, accuracy: float) -> None:
        reports.append(epoch)
        if len(reports) == 2:
            raise RuntimeError("the device is lost")

    checkpoint = Checkpoint(tmp_path / "one.pt", "key")
    reports: list[int] = []
    with pytest.raises(RuntimeError, match="lost"):
        train(
            network(extra=Counted), data, recipe(), seed=0, checkpoint=checkpoint, report=die
        )  # fmt: skip
    assert len(steps) == 10
    result = train(
        network(extra=Counted), data, recipe(), seed=0, checkpoint=checkpoint, report=die
    )  # fmt: skip
    assert len(steps) == 20
    # Whoever goes on has the epochs before told, too.
    assert reports == [0, 1, 0, 1, 2, 3]
    assert numbers(result) == numbers(train(network(), data, recipe(), seed=0))


@pytest.mark.parametrize("why", ["a file in the folder's place", "the disk is full"])
def test_a_checkpoint_that_cannot_be_written_is_told_once(data, tmp_path, monkeypatch, why):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 0.0)
    monkeypatch.setattr("bo_act.training.checkpoint.SAVING_SHARE", float("inf"))
    folder = tmp_path / "kept"
    if why == "the disk is full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        folder.mkdir()
        (folder / "one.pt").symlink_to("/dev/full")
    else:
        folder.write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(
            network(), data, recipe(), seed=0, checkpoint=Checkpoint(folder / "one.pt", "key")
        )
    told = [str(one.message) for one in caught]
    assert len(told) == 1
    assert f"no checkpoint can be written to {folder}: " in told[0]
    assert "training continues" in told[0]
    assert told[0].startswith(result.notes[0])
    assert numbers(result) == numbers(train(network(), data, recipe(), seed=0))
    assert folder.is_file() or list(folder.iterdir()) == []
    assert Path("/dev/full").exists()


def test_kill_9_at_random_moments(data, tmp_path, monkeypatch):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 0.0)
    monkeypatch.setattr("bo_act.training.checkpoint.SAVING_SHARE", float("inf"))
    spec = recipe(epochs=60, optimizer="adamw", learning_rate=0.01)
    started = time.perf_counter()
    undisturbed = train(network(), data, spec, seed=1)
    whole = time.perf_counter() - started
    checkpoint = Checkpoint(tmp_path / "one.pt", "key")

    def work() -> None:
        result = train(network(), data, spec, seed=1, checkpoint=checkpoint)
        (tmp_path / "result.json").write_text(json.dumps(numbers(result)))

    randomness = random.Random(0)
    killed_ten_times(work, lambda: randomness.uniform(0.02, 0.07) * whole)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found == json.loads(json.dumps(numbers(undisturbed)))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_short_trainings_are_not_saved(data, tmp_path, monkeypatch):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 1e6)
    saved: list[int] = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, state: saved.append(1))
    result = train(network(), data, recipe(), seed=0, checkpoint=Checkpoint(tmp_path / "a", "k"))
    assert saved == []
    assert result.saving == 0


def keep(what: object, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    write_checked(path, buffer.getvalue())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "starts over"),
        (lambda path: path.write_bytes(b"nonsense"), "starts over"),
        (lambda path: path.write_bytes(b""), "starts over"),
        (lambda path: Checkpoint(path, "other").save({}), "another"),
        (lambda path: Checkpoint(path, "key").save({}), "starts over"),
        (lambda path: keep([1, 2], path), "starts over"),
        (lambda path: keep(nn.Linear(2, 2), path), "weights_only"),  # code, not data
    ],
    ids=["cut", "noise", "empty", "other", "keys", "list", "module"],
)
def test_a_damaged_checkpoint_starts_over(data, tmp_path, damage, says):
    checkpoint = Checkpoint(tmp_path / "one.pt", "key")
    with pytest.raises(TrainingStopped):
        train(network(), data, recipe(), seed=0, checkpoint=checkpoint, stop=After(7))
    damage(checkpoint.path)
    with pytest.warns(UserWarning, match=says):
        result = train(network(), data, recipe(), seed=0, checkpoint=checkpoint)
    assert numbers(result) == numbers(train(network(), data, recipe(), seed=0))


def test_the_state_of_another_network_starts_over(data, tmp_path):
    checkpoint = Checkpoint(tmp_path / "one.pt", "key")
    with pytest.raises(TrainingStopped):
        train(network(), data, recipe(), seed=0, checkpoint=checkpoint, stop=After(7))
    plain = recipe(ema=0.5)  # its average is missing in the file
    with pytest.warns(UserWarning, match="starts over"):
        result = train(network(), data, plain, seed=0, checkpoint=checkpoint)
    assert numbers(result) == numbers(train(network(), data, plain, seed=0))


# --- too little memory ----------------------------------------------------------------------


class Memory(nn.Module):
    """Holds so many images in training, from some step on."""

    def __init__(self, images: int, after: int = 0) -> None:
        super().__init__()
        self.inputs, self.after = images, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.after -= self.training
        if self.training and self.after < 0 and len(x) > self.inputs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")
        return x


@pytest.mark.parametrize("after", [0, 8])
def test_too_little_memory_halves_what_is_passed_through(data, after):
    reports: list[int] = []
    small = train(
        network(extra=lambda: Memory(20, after), norm=False),
        data,
        recipe(),
        seed=0,
        report=lambda epoch, _: reports.append(epoch),
    )
    enough = train(network(norm=False), data, recipe(), seed=0)
    assert small.notes == ("too little memory for 64 images at a time: 16",)
    assert reports == [0, 1, 2, 3]
    assert small.train_loss == pytest.approx(enough.train_loss, rel=1e-4)
    assert small.curve == pytest.approx(enough.curve, abs=0.011)
    asked = train(network(norm=False), data, recipe(micro_batch=16), seed=0)
    assert asked.notes == ()
    assert asked.train_loss == pytest.approx(enough.train_loss, rel=1e-4)


def test_one_image_has_to_fit(data):
    with pytest.raises(torch.OutOfMemoryError):
        train(network(extra=lambda: Memory(0)), data, recipe(), seed=0)


# --- what else a recipe can ask for ---------------------------------------------------------


def test_a_collapse_to_chance_ends_a_training(data):
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    spec = recipe(epochs=12, collapse_epochs=3, learning_rate=1e-3, schedule="constant")
    reports: list[int] = []
    result = train(
        network(extra=Constant), data, spec, seed=0, report=lambda at, _: reports.append(at)
    )
    assert (result.status, result.collapsed, result.value) == ("diverged", True, 0.1)
    assert 3 <= len(result.curve) < 12
    assert result.epoch_of_divergence == len(result.curve) - 1 == reports[-1]
    learns = train(network(), data, recipe(epochs=6, collapse_epochs=3), seed=0)
    assert learns.status == "completed"
    patient = train(network(extra=Constant), data, recipe(), seed=0)
    assert (patient.status, patient.collapsed) == ("completed", False)


def test_the_average_is_what_is_validated_and_kept(data):
    net = network(norm=False)
    spec = recipe(ema=0.5, schedule="constant", epochs=1, batch_size=320, momentum=0.0)
    before = [weight.detach().clone() for weight in net.parameters()]
    plain = network(norm=False)
    train(plain, data, spec.model_copy(update={"ema": 0.0}), seed=0)
    train(net, data, spec, seed=0)
    # The average begins with the first step's weights.
    assert weights(net) == weights(plain)
    two = spec.model_copy(update={"epochs": 2})
    averaged, last = network(norm=False), network(norm=False)
    result = train(averaged, data, two, seed=0)
    train(last, data, two.model_copy(update={"ema": 0.0}), seed=0)
    for mean, one, other in zip(
        averaged.parameters(), plain.parameters(), last.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, (one + other) / 2)
    assert not torch.equal(before[0], next(averaged.parameters()))
    accuracy = trainer.evaluate(averaged, data.validation, batch_size=512, device="cpu")
    assert result.value == accuracy


def test_decay_of_matrices_leaves_norms_and_biases(data):
    class Idle(nn.Module):
        """A scale and a matrix that get no gradient but are there."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.matrix = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0 * (self.scale.sum() + self.matrix.sum())

    for decay, kept in (("matrices", True), ("all", False)):
        net = network(extra=Idle)
        train(net, data, recipe(weight_decay=0.5, decay=decay, epochs=1), seed=0)
        assert torch.equal(net[3].scale, torch.ones(3)) == kept
        assert bool((net[3].matrix < 1).all())


def test_deterministic_kernels_are_asked_for_inside_alone(data):
    seen: list[bool] = []
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    train(
        network(), data, recipe(epochs=1, deterministic=True), seed=0,
        report=lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )  # fmt: skip
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (flags.deterministic, flags.benchmark) == before

    class Without(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("cumsum_cuda does not have a deterministic implementation")

    with pytest.raises(NetworkError, match=r"cumsum_cuda|deterministic"):
        train(network(extra=Without), data, recipe(deterministic=True), seed=0)


@pytest.mark.parametrize("what", ["network", "activation"])
def test_a_compiler_that_fails_is_told_of_and_done_without(data, monkeypatch, what):
    from bo_act.activations.module import Activation, _fused

    def broken(function: object, **options: object) -> object:
        raise RuntimeError("no C++ compiler\nwas found")

    def build() -> nn.Module:
        return network(extra=lambda: Activation("max(tanh(x),erf(x))"))

    plain = train(build(), data, recipe(), seed=0)
    monkeypatch.setattr(torch, "compile", broken)
    _fused.cache_clear()
    with pytest.warns(
        UserWarning, match="no C\\+\\+ compiler was found; training continues uncompiled"
    ):
        result = train(build(), data, recipe(compile=what), seed=0)
    _fused.cache_clear()
    assert numbers(result) == numbers(plain)
    assert result.notes == ("not compiled: RuntimeError: no C++ compiler was found",)


def test_nothing_of_ours_to_compile_is_told(data):
    with pytest.warns(UserWarning, match="no activation module"):
        result = train(network(), data, recipe(compile="activation"), seed=0)
    assert len(result.notes) == 1


def test_trying_a_compiled_network_leaves_no_trace(data, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **_: compile_(net, backend="eager"))
    result = train(network(extra=lambda: nn.Dropout(0.2)), data, recipe(compile="network"), seed=0)
    plain = train(network(extra=lambda: nn.Dropout(0.2)), data, recipe(), seed=0)
    assert result.notes == ()
    assert numbers(result) == numbers(plain)


def test_checkpoints_are_read_without_running_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return Path(tmp_path / "ran").touch, ()

    torch.save({"format": 1, "key": "key", "state": Payload()}, tmp_path / "one.pt")
    with pytest.warns(UserWarning, match="starts over"):
        assert Checkpoint(tmp_path / "one.pt", "key").load() is None
    assert not (tmp_path / "ran").exists()

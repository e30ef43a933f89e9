from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from bo_act.data.loading import Data, load_data
from bo_act.data.samples import SampleSet
from bo_act.data.split import stratified_sample
from bo_act.errors import BoActError, DataError, NetworkError, SpecError
from bo_act.networks import load_network
from bo_act.specs import DataSpec, ModelSpec, TrainingSpec
from bo_act.training import trainer
from bo_act.training.optimization import learning_rate
from bo_act.training.trainer import TrainingResult, evaluate, pick_device, train

DIGITS = DataSpec(name="digits")
# One thread: several test processes on the same cores would wait for each other's threads.
CPU = TrainingSpec(epochs=2, batch_size=64, device="cpu", threads=1)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DIGITS)


def rows(images: SampleSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.inputs}


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_split_into_three(digits):
    test = digits.load_test()
    assert (len(digits.train), len(digits.validation), len(test)) == (1138, 300, 359)
    assert (digits.num_classes, digits.facts["in_channels"], digits.facts["image_size"]) == (
        10,
        1,
        8,
    )
    assert digits.train.inputs.shape == (1138, 1, 8, 8)
    assert digits.train.inputs.dtype == torch.float32
    assert digits.train.targets.dtype == torch.int64
    # No digit is in scikit-learn's set twice, so equal images would be the same image.
    sets = [rows(digits.train), rows(digits.validation), rows(test)]
    assert len(set.union(*sets)) == sum(len(part) for part in sets) == 1797


def test_all_three_parts_are_stratified(digits):
    for part in (digits.train, digits.validation, digits.load_test()):
        shares = part.targets.bincount(minlength=10) / len(part)
        whole = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) / 1797
        assert (shares - whole).abs().max() < 1 / len(part)


def test_the_seed_moves_validation_and_never_the_test_images(digits):
    other = load_data(replace_spec(DIGITS, seed=1))
    again = load_data(DIGITS)
    assert other.digest != digits.digest == again.digest
    assert not torch.equal(other.validation.targets, digits.validation.targets)
    # Standardization follows the training images; undone, the test images are the same.
    assert torch.equal(other.load_test().targets, digits.load_test().targets)
    assert len(rows(unscaled(other.load_test())) & rows(unscaled(digits.load_test()))) == 359


def unscaled(images: SampleSet) -> SampleSet:
    low, high = images.inputs.min(), images.inputs.max()
    return SampleSet(((images.inputs - low) / (high - low) * 16).round(), images.targets)


def replace_spec(spec: DataSpec, **values: object) -> DataSpec:
    return DataSpec(**(spec.model_dump() | values))


def test_images_are_standardized_by_the_training_images(digits):
    deviation, mean = torch.std_mean(digits.train.inputs.double(), correction=0)
    assert abs(float(mean)) < 1e-5
    assert abs(float(deviation) - 1) < 1e-5
    # Black is one value everywhere: the same transform for all three parts.
    lowest = {float(part.inputs.min()) for part in (digits.train, digits.validation)}
    assert lowest == {float(digits.load_test().inputs.min())}


def test_training_images_can_be_fewer(digits):
    few = load_data(replace_spec(DIGITS, train=95))
    assert len(few.train) == 95
    assert set(few.train.targets.bincount().tolist()) <= {9, 10}
    assert torch.equal(few.validation.targets, digits.validation.targets)
    assert len(load_data(replace_spec(DIGITS, train=10**6)).train) == len(digits.train)


def test_images_are_pooled_or_padded():
    plain, small, large = (
        load_data(replace_spec(DIGITS, image_size=side)) for side in (None, 4, 11)
    )
    assert small.facts["image_size"] == small.validation.inputs.shape[-1] == 4
    assert large.facts["image_size"] == large.load_test().inputs.shape[-1] == 11

    def grays(data: Data) -> torch.Tensor:
        return data.train.inputs[:50]

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    pooled = torch.nn.functional.avg_pool2d(grays(plain), 2)
    assert correlation(grays(small), pooled) == pytest.approx(1, abs=1e-4)
    assert correlation(grays(large)[..., 1:9, 1:9], grays(plain)) == pytest.approx(1, abs=1e-4)
    border = grays(large).clone()
    border[..., 1:9, 1:9] = grays(large).min()
    assert torch.all(border == grays(large).min())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"validation": 1438}, "expected fewer than the 1438 images of 'digits'"),
        ({"image_size": 1}, "expected 2 to 256 pixels, got 1"),
        ({"image_size": 5000}, "expected 2 to 256 pixels, got 5000"),
    ],
)
def test_impossible_splits_and_sizes_are_refused(values, says):
    with pytest.raises(DataError, match=says):
        load_data(replace_spec(DIGITS, **values))


def test_one_training_image_is_the_least():
    assert len(load_data(replace_spec(DIGITS, validation=1437)).train) == 1


def test_stratified_samples_have_the_exact_size():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    for count in (0, 1, 7, 10, 99, 100):
        chosen = stratified_sample(labels, count, torch.Generator().manual_seed(0))
        assert len(chosen.unique()) == count
        shares = labels[chosen].bincount(minlength=3)
        assert (shares - count * torch.tensor([0.7, 0.2, 0.1])).abs().max() < 1


# --- training --------------------------------------------------------------------------------


def network(name: str = "mlp", activation=nn.ReLU, *, seed: int = 0, side: int = 8, **options):
    build = load_network(ModelSpec(name=name, options=options))
    return build(activation, in_channels=1, image_size=side, num_classes=10, seed=seed)


class Breaks(nn.Module):
    """Finite for the first ``good`` calls in training, then NaN or infinite."""

    def __init__(self, good: int, bad: float) -> None:
        super().__init__()
        self.left = good
        self.bad = bad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left -= 1
        return torch.relu(x) if self.left >= 0 else x * self.bad


def small(data: Data, count: int = 256) -> Data:
    def head(images: SampleSet, n: int) -> SampleSet:
        return SampleSet(images.inputs[:n], images.targets[:n])

    return replace(data, train=head(data.train, count), validation=head(data.validation, 64))


@pytest.mark.parametrize(("name", "epochs"), [("mlp", 6), ("small_cnn", 3)])
def test_small_networks_learn(digits, name, epochs):
    result = train(network(name), digits, replace_training(epochs=epochs), seed=0)
    assert result.status == "completed"
    assert len(result.curve) == len(result.train_loss) == epochs
    assert result.value == result.curve[-1] > 0.85
    assert result.train_loss[-1] < result.train_loss[0]
    assert result.seconds > 0


def test_all_cnn_c_learns(digits):
    # Nine layers without normalization: plain SGD needs more epochs than a test has.
    spec = replace_training(epochs=4, batch_size=16, optimizer="adamw", learning_rate=0.001)
    assert train(network("all_cnn_c"), small(digits), spec, seed=0).value > 0.3


def replace_training(**values: object) -> TrainingSpec:
    return TrainingSpec(**(CPU.model_dump() | values))


def test_training_is_deterministic_and_follows_both_seeds(digits):
    def curve(*, weights: int = 0, order: int = 0, noise: int = 0) -> TrainingResult:
        torch.manual_seed(noise)
        return train(network(seed=weights), digits, CPU, seed=order)

    first = curve()
    again = curve(noise=1)
    assert (first.curve, first.train_loss) == (again.curve, again.train_loss)
    assert first.train_loss != curve(order=1).train_loss
    assert first.train_loss != curve(weights=1).train_loss


def test_dropout_follows_the_seed_too(digits):
    def losses(noise: int) -> tuple[float, ...]:
        torch.manual_seed(noise)
        net = nn.Sequential(nn.Dropout(0.5), network())
        return train(net, small(digits), replace_training(epochs=1), seed=0).train_loss

    assert losses(0) == losses(1)


def test_global_state_is_left_alone(digits):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seen: list[int] = []
    spec = replace_training(epochs=1, threads=threads + 1)
    train(
        network(), small(digits), spec, seed=5,
        report=lambda *_: seen.append(torch.get_num_threads()),
    )  # fmt: skip
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("good", "epoch"), [(0, 0), (5, 1)])
def test_divergence_is_a_result(digits, bad, good, epoch):
    reported: list[int] = []
    # 256 images are four steps an epoch.
    result = train(
        network(activation=lambda: Breaks(good, bad)),
        small(digits),
        replace_training(epochs=3),
        seed=0,
        report=lambda at, _: reported.append(at),
    )
    assert result.status == "diverged"
    assert result.epoch_of_divergence == epoch
    assert result.value == 0.1
    assert len(result.curve) == len(result.train_loss) == epoch
    assert reported == list(range(epoch))


def test_divergence_between_two_looks_is_seen(digits, monkeypatch):
    breaks = Breaks(1, float("nan"))
    monkeypatch.setattr(trainer, "is_cheap_to_read", lambda device: False)
    result = train(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10), breaks),
        small(digits),
        replace_training(epochs=1),
        seed=0,
    )
    assert result.status == "diverged"
    assert breaks.left == -3  # all four steps were made


def test_a_run_at_chance_is_not_diverged(digits):
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    result = train(network(activation=Constant), small(digits), CPU, seed=0)
    assert result.status == "completed"
    assert result.value < 0.3


def test_every_epoch_is_reported_and_its_exceptions_pass(digits):
    reports: list[tuple[int, float]] = []
    result = train(network(), small(digits), CPU, seed=0, report=lambda *at: reports.append(at))
    assert reports == list(enumerate(result.curve))

    class Pruned(Exception):
        pass

    def prune(epoch: int, accuracy: float) -> None:
        if epoch == 1:
            raise Pruned

    with pytest.raises(Pruned):
        train(network(), small(digits), replace_training(epochs=3), seed=0, report=prune)


class Counted(nn.Module):
    """Notes the batch size of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.seen: list[bytes] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.sizes.append(len(x))
            self.seen += [image.numpy().tobytes() for image in x]
        return x


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(100, [100, 100] * 2), (128, [128, 128] * 2), (999, [256] * 2)]
)
def test_batches_cover_the_data_without_the_partial_one(digits, batch_size, sizes):
    counted = Counted()
    net = nn.Sequential(counted, network())
    train(net, small(digits), replace_training(batch_size=batch_size), seed=0)
    assert counted.sizes == sizes
    first = counted.seen[: len(counted.seen) // 2]
    assert len(set(first)) == len(first) == sum(sizes) // 2
    assert first != counted.seen[len(first) :]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
        {"momentum": 0.0, "schedule": "constant", "learning_rate": 0.2},
        {"schedule": "cosine", "label_smoothing": 0.1},
        {"precision": "bfloat16"},
        {"precision": "float16", "gradient_clip": 1.0},
        {"ema": 0.9, "channels_last": True, "deterministic": True},
    ],
)
def test_every_setting_trains(digits, values):
    result = train(network(), digits, replace_training(epochs=5, **values), seed=0)
    assert result.value > 0.6


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"optimizer": "adamw"}),
        ({}, {"learning_rate": 0.04}),
        ({}, {"momentum": 0.8}),
        ({}, {"nesterov": False}),
        ({}, {"weight_decay": 0.01}),
        ({"optimizer": "adamw"}, {"weight_decay": 0.01}),
        ({}, {"schedule": "cosine"}),
        ({}, {"schedule": "constant"}),
        ({}, {"warmup": 0.5}),
        ({}, {"label_smoothing": 0.1}),
        ({}, {"precision": "bfloat16"}),
        ({}, {"precision": "float16"}),
        ({}, {"gradient_clip": 0.1}),
        ({}, {"cooldown": 0.5}),
        ({}, {"final_learning_rate": 0.04}),
        ({"weight_decay": 0.1}, {"decay": "matrices"}),
        ({"optimizer": "adamw", "weight_decay": 0.1}, {"decay": "matrices"}),
    ],
)
def test_every_setting_makes_a_difference(digits, base, change):
    first, second = (
        train(network(), small(digits), replace_training(**values), seed=0)
        for values in (base, base | change)
    )
    assert first.train_loss != second.train_loss


def test_bfloat16_reaches_the_layers_and_not_the_loss(digits):
    seen: set[torch.dtype] = set()

    class Look(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(x.dtype)
            return torch.relu(x)

    for precision in ("bfloat16", "auto"):
        seen.clear()
        train(
            network(activation=Look), small(digits),
            replace_training(epochs=1, precision=precision), seed=0,
        )  # fmt: skip
        assert seen == {torch.bfloat16 if precision == "bfloat16" else torch.float32}


def test_networks_that_do_not_fit_are_named(digits):
    with pytest.raises(NetworkError, match=r"fails on images of shape \(2, 1, 8, 8\): RuntimeErr"):
        train(network(side=9), small(digits), CPU, seed=0)
    with pytest.raises(NetworkError, match=r"to logits \(2, 10\), got \(2, 1, 8, 8\)"):
        train(nn.ReLU(), small(digits), CPU, seed=0)
    with pytest.raises(NetworkError, match="weights to train"):
        train(nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), small(digits), CPU, seed=0)


def test_accuracy_is_counted_in_evaluation_mode(digits):
    class Label(nn.Module):
        """Right for the first 30 images, and only in evaluation mode."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            right = nn.functional.one_hot(digits.validation.targets, 10)[self.at : self.at + len(x)]
            wrong = right.roll(1, dims=1)
            early = torch.arange(self.at, self.at + len(x)).unsqueeze(1) < 30
            self.at += len(x)
            return torch.where(early, right, wrong).float()

    for batch_size in (7, 300, 512):
        model = Label()
        model.at = 0
        model.train()
        accuracy = evaluate(model, digits.validation, batch_size=batch_size, device="cpu")
        assert accuracy == 0.1
        assert model.training


# --- schedules and devices -------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (7, 0.5), (50, 0.0)])
def test_one_cycle_is_torchs(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    spec = TrainingSpec(learning_rate=0.05, warmup=warmup)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(spec, step=step, steps=steps) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            schedule.step()


def test_one_cycle_takes_a_warmup_of_one_step():
    spec = TrainingSpec(learning_rate=0.05, warmup=0.1)
    rates = [learning_rate(spec, step=step, steps=10) for step in range(10)]
    assert rates[0] == 0.05
    assert all(before > after for before, after in pairwise(rates))


def test_cosine_rises_and_falls_and_constant_stays():
    spec = TrainingSpec(learning_rate=0.1, warmup=0.25, schedule="cosine")
    rates = [learning_rate(spec, step=step, steps=20) for step in range(20)]
    assert rates[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert all(before > after > 0 for before, after in pairwise(rates[5:]))
    assert rates[-1] < 0.002
    constant = TrainingSpec(learning_rate=0.1, schedule="constant")
    assert {learning_rate(constant, step=step, steps=20) for step in range(20)} == {0.1}


def test_a_cool_down_keeps_the_final_rate():
    # Five epochs of warm-up, 100 of half a cosine, five at the end.
    spec = TrainingSpec(
        learning_rate=0.1, schedule="cosine", warmup=0.05, cooldown=5 / 110,
        final_learning_rate=0.01,
    )  # fmt: skip
    rates = [learning_rate(spec, step=step, steps=110) for step in range(110)]
    assert rates[105:] == [0.01] * 5
    assert rates[104] > 0.01
    assert max(rates) == rates[5] == pytest.approx(0.1, rel=1e-3)
    plain = spec.model_copy(update={"cooldown": 0.0})
    assert rates[:105] == [learning_rate(plain, step=step, steps=105) for step in range(105)]


def test_devices_are_picked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(SpecError, match=f"got '{name}' on a machine with 0 .* devices; use"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    with pytest.raises(BoActError, match="got 'cuda:1' on a machine with 1 cuda devices"):
        pick_device("cuda:1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_a_gpu(digits):
    result = train(network("small_cnn"), digits, replace_training(epochs=4, device="cuda"), seed=0)
    assert result.value > 0.9
    broken = network(activation=lambda: Breaks(3, float("nan")))
    assert train(broken, digits, replace_training(device="cuda"), seed=0).status == "diverged"

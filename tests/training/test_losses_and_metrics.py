"""Losses and metrics of every kind of targets, against slow ones in float64 and scikit-learn's."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from bo_act.data.data import Data
from bo_act.data.samples import SampleSet
from bo_act.data.targets import IGNORED
from bo_act.errors import NetworkError, SpecError
from bo_act.metrics import METRICS
from bo_act.specs import TrainingSpec
from bo_act.training.evaluation import FITTING, measure
from bo_act.training.losses import mean_loss, terms
from bo_act.training.trainer import train

N, C, T, V, K = 53, 4, 6, 5, 3
DRAWN = torch.Generator().manual_seed(0)


class Given(nn.Module):
    """Answers with its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return x


def drawn(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=DRAWN)


def measured(metric: str, outputs: torch.Tensor, targets: torch.Tensor, loss: str) -> float:
    """The metric, the same for batches of any size."""
    found = [
        measure(
            Given().train(), SampleSet(outputs, targets),
            batch_size=size, device="cpu", metric=metric, loss=loss,
        )[0]
        for size in (1, 7, len(targets))
    ]  # fmt: skip
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-6)
    return found[0]


# --- losses ---------------------------------------------------------------------------------


def test_cross_entropy_of_tokens_is_the_mean_over_those_that_have_a_loss():
    outputs, targets = drawn(N, T, V), torch.randint(0, V, (N, T), generator=DRAWN)
    targets[torch.rand(N, T, generator=DRAWN) < 0.3] = IGNORED
    total, count = 0.0, 0
    for sample in range(N):
        for token in range(T):
            y, f = int(targets[sample, token]), outputs[sample, token].double().tolist()
            if y != IGNORED:
                total += math.log(sum(math.exp(x - f[y]) for x in f))
                count += 1
    assert int(terms(targets, "cross_entropy")) == count
    assert float(mean_loss(outputs, targets, "cross_entropy")) == pytest.approx(total / count)
    smooth = float(mean_loss(outputs, targets, "cross_entropy", label_smoothing=0.2))
    kept = targets != IGNORED
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(outputs[kept].double(), targets[kept])
    assert smooth == pytest.approx(float(expected))
    none = torch.full((2, T), IGNORED)
    assert float(mean_loss(outputs[:2], none, "cross_entropy")) == 0


@pytest.mark.parametrize("shape", [(N,), (N, K)])
@pytest.mark.parametrize("loss", ["mse", "mae", "binary_cross_entropy"])
def test_losses_of_numbers_and_labels_are_means_over_all_of_them(shape, loss):
    f = drawn(*shape)
    y = drawn(*shape) if loss != "binary_cross_entropy" else (drawn(*shape) > 0).float()
    pairs = list(zip(f.double().flatten().tolist(), y.double().flatten().tolist(), strict=True))
    one = {
        "mse": lambda a, b: (a - b) ** 2,
        "mae": lambda a, b: abs(a - b),
        "binary_cross_entropy": lambda a, b: math.log1p(math.exp(-a if b else a)),
    }[loss]
    expected = sum(one(a, b) for a, b in pairs) / len(pairs)
    assert float(mean_loss(f, y, loss)) == pytest.approx(expected)
    summed = float(mean_loss(f, y, loss, reduction="sum"))
    assert summed / int(terms(y, loss)) == pytest.approx(expected)
    if len(shape) == 1:  # one output in a column: nothing is broadcast to (N, N)
        assert float(mean_loss(f[:, None], y, loss)) == pytest.approx(expected)
        assert float(mean_loss(f, y[:, None], loss)) == pytest.approx(expected)


# --- metrics --------------------------------------------------------------------------------


def test_every_metric_fits_something_and_has_a_name():
    assert {metric for fit in FITTING.values() for metric in fit} == set(METRICS)


@pytest.mark.parametrize("classes", [2, C])
@pytest.mark.parametrize("metric", FITTING["classes"])
def test_metrics_of_classes_are_scikit_learns(classes, metric):
    f = drawn(N, classes).round(decimals=1)  # with ties
    y = torch.randint(0, classes, (N,), generator=DRAWN)
    d = f.double()
    p = d.softmax(1).numpy()
    expected = {
        "accuracy": lambda: sk.accuracy_score(y, f.argmax(1)),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, f.argmax(1)),
        "auroc": lambda: sk.roc_auc_score(
            y, d[:, 1] - d[:, 0] if classes == 2 else p, multi_class="ovr"
        ),
        "log_loss": lambda: sk.log_loss(y, p, labels=range(classes)),
    }[metric]()
    assert measured(metric, f, y, "cross_entropy") == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, K)])
@pytest.mark.parametrize("metric", FITTING["labels"])
def test_metrics_of_labels_are_scikit_learns(shape, metric):
    f = drawn(*shape).round(decimals=1)
    y = (drawn(*shape) > 0.5).float()
    columns = list(zip(y.reshape(N, -1).T, f.reshape(N, -1).T, strict=True))
    expected = {
        "accuracy": lambda a, b: sk.accuracy_score(a, b > 0),
        "balanced_accuracy": lambda a, b: sk.balanced_accuracy_score(a, b > 0),
        "auroc": sk.roc_auc_score,
        "log_loss": lambda a, b: sk.log_loss(a, b.double().sigmoid(), labels=[0, 1]),
    }[metric]
    mean = np.mean([expected(*one) for one in columns])
    assert measured(metric, f, y, "binary_cross_entropy") == pytest.approx(mean)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, K)])
@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_metrics_of_numbers_are_scikit_learns(shape, loss):
    f, y = drawn(*shape), drawn(*shape)
    assert measured("mse", f, y, loss) == pytest.approx(sk.mean_squared_error(y, f))
    assert measured("r2", f, y, loss) == pytest.approx(sk.r2_score(y, f))
    alike = torch.ones(shape)
    assert measured("r2", f, alike, loss) == sk.r2_score(alike, f) == 0
    assert measured("r2", alike, alike, loss) == sk.r2_score(alike, alike) == 1


def test_metrics_of_tokens_are_of_those_that_have_a_loss():
    f, y = drawn(N, T, V), torch.randint(0, V, (N, T), generator=DRAWN)
    y[torch.rand(N, T, generator=DRAWN) < 0.3] = IGNORED
    kept = y != IGNORED
    p = f.double().softmax(-1)[kept].gather(1, y[kept][:, None])
    bits = float(-p.log2().mean())
    assert measured("bits_per_token", f, y, "cross_entropy") == pytest.approx(bits)
    assert measured("perplexity", f, y, "cross_entropy") == pytest.approx(2**bits)
    right = sk.accuracy_score(y[kept], f.argmax(-1)[kept])
    assert measured("accuracy", f, y, "cross_entropy") == pytest.approx(right)


def test_classes_that_are_not_there_count_in_no_mean():
    f, y = drawn(N, C), torch.randint(0, C - 1, (N,), generator=DRAWN)
    recalls = [float((f.argmax(1)[y == c] == c).float().mean()) for c in range(C - 1)]
    found = measured("balanced_accuracy", f, y, "cross_entropy")
    assert found == pytest.approx(np.mean(recalls))
    p = f.double().softmax(1)
    areas = [sk.roc_auc_score(y == c, p[:, c]) for c in range(C - 1)]
    assert measured("auroc", f, y, "cross_entropy") == pytest.approx(np.mean(areas))


# --- training with them ---------------------------------------------------------------------

KINDS = {
    "classes": (torch.randint(0, C, (N,), generator=DRAWN), C),
    "tokens": (torch.randint(0, V, (N, T), generator=DRAWN), V),
    "labels": ((drawn(N, K) > 0).float(), K),
    "numbers": (drawn(N, K), K),
}
CPU = {"epochs": 2, "batch_size": 16, "device": "cpu", "threads": 1, "learning_rate": 0.02}


def data_of(kind: str) -> Data:
    targets, outputs = KINDS[kind]
    shape = (N, T, 7) if kind == "tokens" else (N, 7)
    some = SampleSet(torch.randn(shape, generator=torch.Generator().manual_seed(1)), targets)
    facts = {"out_features": outputs, "in_features": 7, "num_classes": outputs}
    return Data("made up", some, some, facts, "", kind)


def network_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, KINDS[kind][1]))


LOSSES = [
    ("classes", "auto"), ("tokens", "auto"), ("labels", "binary_cross_entropy"),
    ("labels", "auto"), ("numbers", "auto"), ("numbers", "mse"), ("numbers", "mae"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_every_loss_falls_and_the_usual_metric_is_measured(kind, loss):
    net, spec = network_of(kind), TrainingSpec(**CPU | {"epochs": 12}, loss=loss)
    result = train(net, data_of(kind), spec, seed=0)
    assert result.train_loss[-1] < result.train_loss[0]
    usual = FITTING[kind][0]
    name = {"classes": "cross_entropy", "tokens": "cross_entropy", "labels": "binary_cross_entropy"}
    value, _ = measure(
        net, data_of(kind).validation, batch_size=9, device="cpu", metric=usual,
        loss=name.get(kind, "mse"),
    )  # fmt: skip
    assert result.value == result.curve[-1] == pytest.approx(value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_does_not_fit_is_told_with_those_that_do(kind, metric):
    if metric in FITTING[kind]:
        result = train(network_of(kind), data_of(kind), TrainingSpec(**CPU), metric=metric, seed=0)
        assert result.status == "completed"
        assert data_of(kind).worst(metric) is not None
        return
    with pytest.raises(SpecError, match=f"metrics that fit: {', '.join(FITTING[kind])}$"):
        train(network_of(kind), data_of(kind), TrainingSpec(**CPU), metric=metric, seed=0)


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("numbers", {"loss": "cross_entropy"}, "which are numbers; losses that fit: mse, mae"),
        ("classes", {"loss": "mse"}, "which are classes; losses that fit: cross_entropy"),
        ("tokens", {"loss": "binary_cross_entropy"}, "losses that fit: cross_entropy"),
        ("numbers", {"label_smoothing": 0.1}, "label_smoothing is for cross-entropy"),
        ("labels", {"label_smoothing": 0.1}, "label_smoothing is for cross-entropy"),
        ("tokens", {"collapse_epochs": 2}, "collapse_epochs looks for the accuracy of guessing"),
        ("numbers", {"channels_last": True}, "channels_last is for images"),
    ],
)
def test_a_recipe_that_makes_no_sense_of_the_targets_is_refused(kind, values, says):
    with pytest.raises(SpecError, match=says) as caught:
        train(network_of(kind), data_of(kind), TrainingSpec(**CPU, **values), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "width", "says"),
    [
        ("classes", C + 1, rf"to logits \(2, {C}\), got \(2, {C + 1}\)"),
        ("tokens", V + 1, rf"to logits \(2, {T}, {V}\), got \(2, {T}, {V + 1}\)"),
        ("labels", 1, rf"to logits \(2, {K}\), got \(2, 1\)"),
        ("numbers", 1, rf"to numbers \(2, {K}\), got \(2, 1\)"),
    ],
)
def test_outputs_of_another_shape_are_told_and_never_broadcast(kind, width, says):
    network = nn.Linear(7, width)
    with pytest.raises(NetworkError, match=says):
        train(network, data_of(kind), TrainingSpec(**CPU), seed=0)


def test_pieces_of_a_batch_of_tokens_are_weighed_by_those_that_have_a_loss():
    targets = KINDS["tokens"][0].clone()
    targets[torch.rand(N, T, generator=DRAWN) < 0.5] = IGNORED
    targets[3] = IGNORED
    some = SampleSet(torch.randn(N, T, 7, generator=DRAWN), targets)
    data = Data("made up", some, some, {"out_features": V}, "", "tokens")
    results = []
    for pieces in ({}, {"micro_batch": 1}, {"micro_batch": 5}):
        net = network_of("tokens")
        found = train(net, data, TrainingSpec(**CPU | {"batch_size": N}, **pieces), seed=0)
        results.append((found.train_loss, net[0].weight.detach()))
    for losses, weight in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(weight, results[0][1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("wrapped", [lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y)])
def test_logits_may_lie_in_a_mapping_or_an_object(wrapped):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network_of("tokens")

        def forward(self, x: torch.Tensor) -> object:
            return wrapped(self.inner(x))

    plain, inside = network_of("tokens"), Wrapped()
    results = [
        train(net, data_of("tokens"), TrainingSpec(**CPU), seed=0) for net in (plain, inside)
    ]
    assert results[0].curve == results[1].curve
    with pytest.raises(NetworkError, match="expected logits"):
        train(Other(), data_of("tokens"), TrainingSpec(**CPU), seed=0)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(7, V)

    def forward(self, x: torch.Tensor) -> object:
        return {"hidden": self.weight(x)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_metric_that_is_not_finite_is_a_divergence(bad):
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if self.training else x * bad * 1e20

    data = data_of("numbers")
    net = nn.Sequential(network_of("numbers"), Breaks())
    result = train(net, data, TrainingSpec(**CPU), seed=0)
    assert (result.status, result.epoch_of_divergence) == ("diverged", 0)
    assert result.value == data.worst("mse")
    y = KINDS["numbers"][0].double()
    assert result.value == pytest.approx(float((y - y.mean(0)).square().mean()))


def test_what_guessing_has():
    labels, numbers, tokens, classes = map(data_of, ("labels", "numbers", "tokens", "classes"))
    assert [classes.worst(name) for name in FITTING["classes"]] == [1 / C, 1 / C, 0.5, math.log(C)]
    assert [labels.worst(name) for name in FITTING["labels"]] == [0.5, 0.5, 0.5, math.log(2)]
    assert [tokens.worst(name) for name in FITTING["tokens"]] == [math.log2(V), V, 1 / V]
    assert numbers.worst("r2") == 0


def test_auroc_of_one_class_alone_is_refused():
    one = SampleSet(torch.randn(9, 7), torch.zeros(9, dtype=torch.int64))
    data = Data("made up", one, one, {"num_classes": C, "out_features": C}, "")
    with pytest.raises(SpecError, match="'auroc' needs validation samples of both classes"):
        train(network_of("classes"), data, TrainingSpec(**CPU), metric="auroc", seed=0)

"""What each example has to do with a metric: the mean is the metric, and the spread its error's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bo_act.data.samples import SampleSet
from bo_act.training.evaluation import evaluate
from bo_act.training.examples import per_example

N = 300
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float32, device="cpu")


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=GENERATOR, dtype=torch.int64, device="cpu")


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    targets = integers(5, N, 6)
    ignored = integers(3, N, 6) == 0
    ignored[:, 0] = False
    logits = drawn(N, 6, 5) + nn.functional.one_hot(targets, 5)
    return logits, torch.where(ignored, -100, targets)


def classes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Of unequal size.
    targets = torch.minimum(integers(count, N), integers(count, N))
    return drawn(N, count) + nn.functional.one_hot(targets, count), targets


def labels(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = (drawn(*shape) > 0.7).float()
    return drawn(*shape) + targets, targets


def numbers(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = drawn(*shape).sinh()
    return targets + 0.5 * drawn(*shape), targets


OF_CLASSES = ("accuracy", "balanced_accuracy", "auroc")
CASES = [
    *[(m, "cross_entropy", classes(count)) for m in OF_CLASSES for count in (2, 4)],
    *[(m, "binary_cross_entropy", labels(*shape)) for m in OF_CLASSES for shape in ((N,), (N, 3))],
    *[(m, "cross_entropy", tokens()) for m in ("accuracy", "bits_per_token", "perplexity")],
    *[(m, "mse", numbers(*shape)) for m in ("mse", "r2") for shape in ((N,), (N, 2))],
    *[("log_loss", "cross_entropy", classes(count)) for count in (2, 4)],
    *[("log_loss", "binary_cross_entropy", labels(*shape)) for shape in ((N,), (N, 3))],
]


def measured(metric: str, loss: str, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    options = {"batch_size": 50, "device": "cpu", "metric": metric, "loss": loss}
    return evaluate(nn.Identity(), SampleSet(outputs, targets), **options)


@pytest.mark.parametrize(("metric", "loss", "case"), CASES)
def test_the_mean_is_the_metric_and_each_what_leaving_it_out_takes_away(metric, loss, case):
    """Beside the jackknife, which leaves one out after the other."""
    outputs, targets = case
    found = per_example(
        nn.Identity(),
        SampleSet(outputs, targets),
        batch_size=50,
        device="cpu",
        metric=metric,
        loss=loss,
    )
    assert found.shape == (N,)
    value = measured(metric, loss, outputs, targets)
    assert found.mean() == pytest.approx(value, rel=1e-5)
    others = [torch.arange(N) != number for number in range(N)]
    without = np.array([measured(metric, loss, outputs[rest], targets[rest]) for rest in others])
    jackknife = N * value - (N - 1) * without
    assert np.corrcoef(found, jackknife)[0, 1] > 0.995
    assert found.std() == pytest.approx(jackknife.std(), rel=0.08)
    if metric == "accuracy" and loss == "cross_entropy" and targets.dim() == 1:
        assert found.dtype == bool


def test_what_is_not_finite_is_not_finite():
    outputs, targets = classes(4)
    outputs[3, 1] = float("nan")
    options = {"batch_size": 50, "device": "cpu", "loss": "cross_entropy"}
    found = per_example(nn.Identity(), SampleSet(outputs, targets), metric="auroc", **options)
    assert np.isnan(found).all()


def test_a_network_is_left_in_its_mode():
    network = nn.Sequential(nn.Dropout(0.5), nn.Identity()).train()
    outputs, targets = classes(4)
    one, again = (
        per_example(network, SampleSet(outputs, targets), batch_size=50, device="cpu")
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, again)
    assert network.training

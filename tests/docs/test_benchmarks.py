"""The benchmark command runs, and its two ways of computing the Fisher spectra agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bo_act.fisher.spectra import FimSpectra, fim_spectra
from bo_act.networks import load_network
from bo_act.specs import ModelSpec

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import fim
    import plain_fim
    import problems

    yield fim, plain_fim, problems
    for name in ("fim", "plain_fim", "problems"):
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_command_prints_that_both_ways_agree(modules, capsys):
    fim, _, _ = modules
    arguments = ["--networks", "mlp", "--batch", "8", "--functions", "1", "--threads", "1"]
    fim.main([*arguments, "--json"])
    printed = json.loads(capsys.readouterr().out)
    ours, plain = printed["results"]
    assert (ours["way"], plain["way"]) == ("ours", "plain")
    assert ours["layers"] == plain["layers"] == 4
    assert ours["parameters"] == 59_210
    assert min(ours["peak_memory"], plain["peak_memory"]) > 0
    assert all(len(times) == 1 and times[0] > 0 for times in ours["seconds"] + plain["seconds"])
    (agreement,) = printed["agreement"]
    assert agreement["compared"] > 0.02  # of eight images, most eigenvalues are null
    assert agreement["quantile_difference"] < 1e-3
    assert agreement["trace_difference"] < 1e-5


@pytest.mark.parametrize(
    "name", [pytest.param("all_cnn_c", marks=pytest.mark.slow), "resnet56", "vit"]
)
def test_the_plain_way_covers_what_it_says(modules, name):
    _, plain_fim, problems = modules
    problem = problems.Problem.make(name, 2, "cpu")
    options = {
        "all_cnn_c": {},
        "resnet56": {"blocks": 1},
        "vit": {"depth": 1, "width": 12},
    }[name]
    builder = load_network(ModelSpec(name=name, options=options))
    network = builder(nn.Tanh, in_channels=3, image_size=32, num_classes=10, seed=0)
    plain = plain_fim.plain_way(network, problem.images, problem.labels)
    assert len(plain) == {"all_cnn_c": 9, "resnet56": 8, "vit": 4}[name]
    ours = fim_spectra(network, problem.images, problem.labels, fisher="empirical")
    assert set(plain) <= set(ours.layers)
    difference, compared = plain_fim.compare(ours, plain)
    assert compared > 0.05
    assert difference < 5e-3


def summary(logs: np.ndarray) -> FimSpectra:
    """Return the summary of one layer's log eigenvalues."""
    levels = (np.arange(128) + 0.5) / 128
    return FimSpectra(
        quantiles=np.quantile(np.maximum(logs, -100), levels, method="inverted_cdf")[None],
        null_mass=np.array([np.mean(logs == -np.inf)]),
        weights=np.array([len(logs)]),
        layers=("layer",),
        uncovered=(),
    )


def test_the_comparison_sees_what_it_should(modules):
    _, plain_fim, _ = modules

    def layer(logs):
        return plain_fim.PlainLayer(np.sort(logs), np.zeros(128), (1.0, 1.0), size=20)

    rng = np.random.default_rng(0)
    limit = np.log(plain_fim.RESOLUTION * 20)
    logs = np.concatenate([rng.uniform(limit, 0.0, 100), rng.uniform(-40, limit, 80), [0.0]])
    logs = np.concatenate([logs, np.full(19, -np.inf)])
    ours = summary(logs)
    difference, compared = plain_fim.compare(ours, {"layer": layer(logs), "other": layer(logs)})
    assert difference == 0.0
    assert compared == pytest.approx(101 / 200, abs=0.02)
    # A shifted spectrum is seen, one that differs below the limit alone is not.
    assert plain_fim.compare(ours, {"layer": layer(logs + 0.01)})[0] == pytest.approx(0.01)
    noisy = np.where(logs < limit, logs - 1.0, logs)
    assert plain_fim.compare(ours, {"layer": layer(noisy)})[0] == 0.0
    # Null eigenvalues may be counted otherwise, but none that is resolved may be missing.
    fewer = np.where(logs < -39, -np.inf, logs)
    assert plain_fim.compare(summary(fewer), {"layer": layer(logs)})[0] == 0.0
    missing = np.where(logs < limit / 2, -np.inf, logs)
    assert plain_fim.compare(summary(missing), {"layer": layer(logs)})[0] > 50
    assert plain_fim.compare(ours, {"other": layer(logs)}) == (np.inf, 0.0)
    ours.quantiles[0, -1] = np.nan
    assert plain_fim.compare(ours, {"layer": layer(logs)})[0] == np.inf


def test_images_follow_from_the_seed_and_neighbouring_pixels_are_alike(modules):
    _, _, problems = modules
    images = problems.Problem.make("vit", 64, "cpu").images
    assert torch.equal(images, problems.Problem.make("vit", 64, "cpu").images)
    assert images.mean().abs() < 1e-5
    assert images.std() == pytest.approx(1.0, abs=1e-5)
    for axis in (2, 3):
        neighbours = (images * images.roll(1, dims=axis)).mean()
        opposite = (images * images.roll(16, dims=axis)).mean()
        assert neighbours > 0.6
        assert opposite < 0.2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--networks", "lenet"], "invalid choice: 'lenet'"),
        (["--functions", "99"], "invalid choice: 99"),
        (["--batch", "0"], "are at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(modules, capsys, arguments, says):
    fim, _, _ = modules
    with pytest.raises(SystemExit):
        fim.main(arguments)
    assert says in capsys.readouterr().err

"""Every function of the Act-Bench space, through all that a study does to it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bo_act.data.loading import Data, load_data
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.search.embedding.embedding import PcaEmbedder
from bo_act.spaces.space import Space
from bo_act.specs import DataSpec, FeaturesSpec, SpaceSpec, TrainingSpec
from bo_act.training.trainer import train


def network(activation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), activation(), nn.Flatten(), nn.Linear(36, 10)
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataSpec(name="digits", train=32, validation=20))


# The functions that a person would try.
TRIED = ("relu(x)", "swish(x)", "tanh(x)", "elu(x)", "softplus(x)", "sigmoid(x)")


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def space(request, act_bench) -> Space:
    """All functions, or every seventh."""
    if request.param == "all":
        return act_bench
    catalogue = act_bench.catalogue
    texts = [catalogue.text(index) for index in range(0, len(catalogue), 7)]
    return Space(SpaceSpec(name="some", expressions=tuple(dict.fromkeys([*TRIED, *texts]))))


@pytest.fixture(scope="module")
def table(space, data) -> FeatureTable:
    return compute_features(
        space,
        network=network,
        inputs=data.train.inputs,
        targets=data.train.targets,
        spec=FeaturesSpec(quantiles=16),
    )


def test_features_are_there_or_their_absence_is_explained(space, table):
    assert len(table) == len(space.catalogue) == (2826 if space.name == "act_bench" else 408)
    missing = table.missing()
    for name, block in table.blocks.items():
        assert sum(missing[name].values()) == int((~block.present).sum())
    for text in TRIED:
        assert table.blocks["fim"].present[space.catalogue.index(text)]
    assert table.blocks["fim"].present.mean() > 0.7


def test_whatever_has_features_has_a_place(table):
    embedding = PcaEmbedder().fit(table)
    assert embedding.valid.tolist() == table.blocks["fim"].present.tolist()


@pytest.mark.slow
def test_one_training_step_ends_with_a_result(act_bench_catalogue, data):
    def small(activation) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation, nn.Linear(4, 10))

    spec = TrainingSpec(epochs=1, batch_size=32, device="cpu", schedule="constant")
    states = {"completed": 0, "diverged": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(len(act_bench_catalogue)):
            torch.manual_seed(0)
            activation = act_bench_catalogue.activation(index)
            result = train(small(activation), data, spec, seed=0)
            states[result.status] += 1
            assert 0 <= result.value <= 1
    assert sum(states.values()) == 2826
    assert states["diverged"] > 100
    assert states["completed"] > 2000

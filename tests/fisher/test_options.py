"""Options of Fisher spectra: checked once, and the same at each door."""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from bo_act.errors import FeatureError
from bo_act.fisher.options import FisherOptions
from bo_act.fisher.spectra import fim_spectra
from bo_act.specs import FeaturesSpec


def test_study_files_and_fim_spectra_have_the_same_options_and_defaults():
    known = {field.name: field.default for field in fields(FisherOptions)}
    door = inspect.signature(fim_spectra).parameters.values()
    assert {one.name: one.default for one in door if one.kind is one.KEYWORD_ONLY} == known
    in_files = FeaturesSpec.model_fields
    assert {name: in_files[name].default for name in known} == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher": "emprical"}, r"fisher to be one of mc, exact, .*did you mean 'empirical'"),
        ({"loss": "nll"}, "loss to be one of cross_entropy, mse"),
        ({"weight_sharing": "expanded"}, "did you mean 'expand'"),
        ({"statistics": None}, "statistics to be one of batch, running, got None"),
        ({"statistics": ["batch"]}, "got \\['batch'\\]"),
        ({"label_smoothing": 1.5}, "label_smoothing: expected a number from 0 to 1, got 1.5"),
        ({"label_smoothing": float("nan")}, "from 0 to 1, got nan"),
        ({"label_smoothing": "0.1"}, "from 0 to 1, got '0.1'"),
        ({"label_smoothing": True}, "from 0 to 1, got True"),
        ({"quantiles": 0}, "quantiles: expected a whole number from 1 to"),
        ({"quantiles": 16.0}, "quantiles: expected a whole number"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"seed": 2**32}, "seed: expected a whole number from 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_runs(options, message):
    class Unused(nn.Module):
        def forward(self, x):
            raise AssertionError("was run")

    with pytest.raises(FeatureError, match=message):
        fim_spectra(Unused(), torch.ones(2, 3), **options)


def test_numbers_of_numpy_are_options():
    network, images = nn.Linear(3, 2), torch.arange(12.0).reshape(4, 3)
    found = fim_spectra(
        network, images, seed=np.int64(3), quantiles=np.int32(4), label_smoothing=np.float64(0.0)
    )
    expected = fim_spectra(network, images, seed=3, quantiles=4)
    np.testing.assert_array_equal(found.quantiles, expected.quantiles)

"""Initial weights: the signal neither grows nor fades, and nothing else is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bo_act.activations.module import Activation
from bo_act.networks import initialize, load_network
from bo_act.specs import ModelSpec, StudySpec
from bo_act.tasks.task import Task

SHAPE = (1, 8, 8)
FUNCTIONS = ("relu(x)", "tanh(x)", "swish(x)", "sub(softplus(x),erfc(x))")


def deep(function: str, depth: int = 20) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), Activation(function)]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def convolutional(function: str) -> nn.Module:
    options = {"widths": [8, 16, 32], "batch_norm": False}
    build = load_network(ModelSpec(name="small_cnn", options=options))
    place = {"in_channels": 1, "image_size": 8, "num_classes": 10}
    return build(lambda: Activation(function), **place, seed=0)


def mean_squares(network: nn.Module) -> list[float]:
    found = []
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _, __, y: found.append(float(y.square().mean())))
    with torch.no_grad():
        network.eval()(torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(9)))
    return found


@pytest.mark.parametrize("network", [deep, convolutional])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_outputs_have_unit_mean_square_at_any_depth(network, function):
    made = network(function)
    initialize(made, "unit_variance", inputs=torch.zeros(2, *SHAPE), seed=3)
    assert all(0.5 < square < 2 for square in mean_squares(made))


def test_by_default_the_signal_fades():
    assert mean_squares(deep("tanh(x)"))[-1] < 0.01


def test_nothing_but_weights_changes():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10)
    )
    network[0].eval()
    before = copy.deepcopy(network)
    state = torch.get_rng_state()
    initialize(network, "unit_variance", inputs=torch.zeros(2, *SHAPE), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    for (name, buffer), (_, old) in zip(
        network.named_buffers(), before.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, old), name
    ratio = network[1].weight / before[1].weight
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert not network[1].bias.any()
    assert not any(module._forward_hooks for module in network.modules())
    again = copy.deepcopy(before)
    initialize(again, "unit_variance", inputs=torch.zeros(2, *SHAPE), seed=0)
    assert torch.equal(again[4].weight, network[4].weight)


def test_kaiming_and_default():
    network = deep("relu(x)")
    before = copy.deepcopy(network.state_dict())
    initialize(network, "default", inputs=torch.zeros(2, *SHAPE), seed=0)
    assert all(torch.equal(a, before[name]) for name, a in network.state_dict().items())
    initialize(network, "kaiming", inputs=torch.zeros(2, *SHAPE), seed=0)
    weights = torch.stack([m.weight for m in network if isinstance(m, nn.Linear)][:-1])
    assert float(weights.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.02)


def test_a_layer_without_output_and_one_called_twice():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Linear(64, 64)
            self.twice = nn.Linear(64, 64)
            nn.init.zeros_(self.none.weight)

        def forward(self, images):
            x = images.flatten(1)
            return self.twice(self.twice(x + self.none(x)))

    network = Odd()
    old = network.twice.weight.clone()
    initialize(network, "unit_variance", inputs=torch.zeros(2, *SHAPE), seed=0)
    assert not network.none.weight.any()
    first = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(0)).flatten(1)
    ratio = float((network.twice.weight / old).detach().mean())
    assert ratio == pytest.approx(float((first @ old.detach().T).square().mean()) ** -0.5, rel=1e-4)


def test_a_study_takes_it():
    def task(init: str) -> Task:
        content = {"name": "s", "model": {"name": "mlp", "init": init}, "data": {"name": "digits"}}
        return Task.load(StudySpec.model_validate(content))

    plain, scaled = (task(init).network(seed=0) for init in ("default", "unit_variance"))
    assert plain.key.items() < scaled.key.items()  # features of before stay where they are
    outputs = mean_squares(scaled(lambda: Activation("tanh(x)")))
    assert all(0.5 < square < 2 for square in outputs)
    settings = {"training.learning_rate": 0.1}
    assert task("kaiming").with_settings(settings).network(seed=0).init == "kaiming"

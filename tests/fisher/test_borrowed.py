"""Fisher factors of networks in whatever state they come: compiled, wrapped, frozen, traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.errors import FeatureError
from bo_act.features.compute import compute_features
from bo_act.fisher.kfac import refuse_randomness
from bo_act.fisher.spectra import fim_spectra
from bo_act.spaces.space import Space
from bo_act.specs import FeaturesSpec

IMAGES = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Convolutions, a norm, attention and tied parameters, in modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), Activation("tanh(x)"))
            self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).flatten(2).mT).mean(1))


def compiled(network: nn.Module) -> nn.Module:
    found = torch.compile(network, backend="eager")
    found(IMAGES)  # a compiled network is run before anyone looks at it
    return found


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    network(IMAGES)
    return network


def compiled_inside(network: nn.Module) -> nn.Module:
    network.stem = torch.compile(network.stem, backend="eager")
    network.block = torch.compile(network.block, backend="eager")
    network(IMAGES)
    return network


def fused(network: nn.Module) -> nn.Module:
    network.stem[2] = Activation("mul(tanh(x),one(x))", fused=True)
    return network


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled inside": compiled_inside,
    "spread over devices": nn.DataParallel,
    "compiled and spread": lambda network: nn.DataParallel(compiled(network)),
    "frozen": lambda network: network.requires_grad_(False),
    "evaluating": nn.Module.eval,
    "channels last": lambda network: network.to(memory_format=torch.channels_last),
    "double": nn.Module.double,
    "fused": fused,
}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()


@pytest.mark.parametrize("way", WAYS)
def test_factors_are_those_of_the_network_inside(way):
    expected = kronecker_factors(Network(), IMAGES, None, fisher="exact")
    network = WAYS[way](Network())
    images = IMAGES.double() if way == "double" else IMAGES
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = kronecker_factors(network, images, None, fisher="exact")
    assert [one.name for one in found.layers] == [one.name for one in expected.layers]
    assert found.uncovered == expected.uncovered
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close((one.a, one.g), (other.a, other.g), rtol=1e-3, atol=1e-5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    fim_spectra(network, images, None, quantiles=8)


def test_a_network_built_in_inference_mode():
    expected = kronecker_factors(Network(), IMAGES, None, fisher="exact")
    with torch.inference_mode():
        network, images = Network(), IMAGES + 0
        weights = dict(network.named_parameters())
        found = kronecker_factors(network, images, None, fisher="exact")
    refuse_randomness(network, images, statistics="batch")
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close((one.a, one.g), (other.a, other.g))
    assert all(one is weights[name] for name, one in network.named_parameters())


def test_compiled_code_runs_again_afterwards():
    counted = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            counted.append(1)
            return graph.forward(*tensors)

        return run

    network = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(50, 3)), backend=backend)
    network(IMAGES)
    fim_spectra(network, IMAGES, None, quantiles=8)
    assert len(counted) == 1
    network(IMAGES)
    assert len(counted) == 2


def test_a_traced_network_keeps_its_layers():
    network = nn.Sequential(nn.Flatten(), nn.Linear(50, 4), Activation("tanh(x)"), nn.Linear(4, 3))
    found = kronecker_factors(torch.fx.symbolic_trace(network), IMAGES, None)
    assert [one.name for one in found.layers] == ["1", "3"]


def test_half_precision():
    network = Network().bfloat16()
    found = fim_spectra(network, IMAGES.bfloat16(), None, quantiles=8)
    assert np.isfinite(found.quantiles).all()


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("network", "images", "says"),
    [
        (scripted, IMAGES, "layers run one by one, got a torch.jit module"),
        (
            lambda: torch.compile(nn.Linear(5, 3).forward),
            IMAGES,
            "Module, got .*; instead of a compiled",
        ),
        (lambda: Network().bfloat16(), IMAGES, r"bfloat16 on cpu, got torch.float32 on cpu"),
        (Network, IMAGES.double(), r"float32 on cpu, got torch.float64 on cpu"),
        (lambda: Network().to("meta"), IMAGES, r"float32 on meta, got torch.float32 on cpu"),
        (lambda: Network().to("meta"), IMAGES.to("meta"), "inputs with values, .* meta device"),
    ],
)
def test_what_cannot_be_looked_into_is_said_on_one_line(network, images, says):
    for compute in (fim_spectra, kronecker_factors):
        with pytest.raises(FeatureError, match=says) as error:
            compute(network(), images, None)
        assert "\n" not in str(error.value)


def test_features_of_networks_that_are_compiled_when_they_are_built(tiny: Space):
    spec = FeaturesSpec(subset=2, quantiles=8)

    def plain(activation: Callable[[], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(50, 4), activation(), nn.Linear(4, 3))

    def other(activation: Callable[[], nn.Module]) -> nn.Module:
        return torch.compile(plain(activation), backend="eager")

    found, expected = (
        compute_features(
            tiny, network=network, inputs=IMAGES, targets=torch.arange(6) % 3, spec=spec
        ).blocks["fim"]
        for network in (other, plain)
    )
    np.testing.assert_array_equal(found.values, expected.values)

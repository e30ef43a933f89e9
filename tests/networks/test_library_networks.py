from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import nn
from torch.nn.modules import activation as torch_activations
from torch.overrides import TorchFunctionMode

from bo_act.activations.module import Activation
from bo_act.errors import NetworkError
from bo_act.fisher.spectra import fim_spectra
from bo_act.networks import NetworkBuilder, load_network
from bo_act.networks.calls import FUNCTIONS
from bo_act.networks.layers import LEFT
from bo_act.networks.libraries import replace_in_classifier
from bo_act.specs import ModelSpec


class Marked(nn.Module):
    """Counts its calls, and calls a function that networks call too."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Marked.calls += 1
        return 2 * nn.functional.relu(x)


def load(name: str, **options: object) -> NetworkBuilder:
    return load_network(ModelSpec(name=name, options=options))


def made(name: str, activation=nn.Softplus, *, side=64, channels=3, classes=10, seed=0, **options):
    return load(name, **options)(
        activation, in_channels=channels, image_size=side, num_classes=classes, seed=seed
    )


def size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "side", "parameters", "places"),
    [
        ("torchvision:resnet18", 32, 11_689_512, 9),
        ("torchvision:mobilenet_v3_small", 32, 2_542_856, 28),
        ("timm:mobilevitv2_050", 64, 1_370_593, None),
        ("timm:vit_tiny_patch16_224", 224, 5_717_416, 12),
        ("timm:coatnet_0_224", 224, 25_036_820, None),
    ],
)
def test_sizes_are_the_published_ones_and_no_other_activation_is_left(
    name, side, parameters, places
):
    network = made(name, Marked, side=side, classes=1000)
    assert size(network) == parameters
    kinds = {type(module).__name__ for module in network.modules()}
    assert not kinds & {"ReLU", "SiLU", "GELU", "Hardswish", "GELUTanh"}
    marked = [module for module in network.modules() if isinstance(module, Marked)]
    if name == "torchvision:mobilenet_v3_small":
        assert "Hardsigmoid" in kinds
    elif places:
        assert len(marked) == places


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("torchvision:resnet18", 1),
        ("timm:mobilevitv2_050", 3),
        ("timm:resnet18", 1),
        ("timm:vit_tiny_patch16_224", 1),
    ],
)
def test_weights_follow_from_the_seed_and_gradients_reach_them(name, channels):
    first, other = (made(name, channels=channels, seed=seed) for seed in (1, 2))
    torch.rand(3)
    again = made(name, nn.Tanh, channels=channels, seed=1)
    weights = list(first.parameters())
    pairs = list(zip(weights, again.parameters(), strict=True))
    assert all(torch.equal(one, same) for one, same in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(weights, other.parameters(), strict=True))
    images = torch.randn(4, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    copied = copy.deepcopy(first).eval()
    torch.testing.assert_close(copied(images), first.eval()(images))
    again.train()(images).logsumexp(dim=1).sum().backward()
    still = [name for name, weight in again.named_parameters() if weight.grad is None]
    assert not still


class Calling(nn.Module):
    """Activation modules, gates and functional calls at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 10)
        self.act = nn.ReLU()
        self.same = self.act
        self.gate = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(self.act(self.first(x.flatten(1))))
        return nn.functional.relu(x, inplace=True).tanh() * self.gate(x)


def test_functional_calls_are_replaced_once_each():
    network = Calling()
    replace_in_classifier(network, Marked, name="n", image=(3, 2, 2), num_classes=10)
    assert network.act is not network.same
    assert isinstance(network.gate, nn.Sigmoid)
    Marked.calls = 0
    images = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(images)
        assert Marked.calls == 4
        z = 4 * network.first(images.flatten(1)).relu()
        torch.testing.assert_close(y, 4 * z * (2 * z).sigmoid())  # the gate reads it changed


# What becomes of a class that a later torch adds has to be decided here, or in LEFT.
REPLACED = {
    "Threshold", "ReLU", "RReLU", "Hardtanh", "ReLU6", "Tanh", "SiLU", "Mish", "Hardswish", "ELU",
    "CELU", "SELU", "GLU", "GELU", "Hardshrink", "LeakyReLU", "LogSigmoid", "Softplus",
    "Softshrink", "PReLU", "Softsign", "Tanhshrink",
}  # fmt: skip
ARGUMENTS = {
    "Threshold": (0.1, 0.0), "MultiheadAttention": (4, 1), "Softmin": (1,), "Softmax": (1,),
    "LogSoftmax": (1,),
}  # fmt: skip


class Calls(TorchFunctionMode):
    """Keeps what is called outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **kwargs or {})


def calls_of(name: str, **options: bool) -> set[object]:
    """What a module's forward calls of torch, attributes of tensors left aside."""
    layer = getattr(nn, name)(*ARGUMENTS.get(name, ()), **options)
    inputs = [torch.randn(2, 4, 4)] * (3 if name == "MultiheadAttention" else 1)
    with Calls() as calls:
        layer(*inputs)
    return {one for one in calls.seen if getattr(one, "__name__", "") not in ("__get__", "dim")}


@pytest.mark.parametrize("name", torch_activations.__all__)
def test_calls_are_replaced_where_modules_are(name):
    assert (name in REPLACED) != (name in LEFT)
    if name in LEFT:
        assert not calls_of(name) & FUNCTIONS.keys()
        return
    assert calls_of(name) <= FUNCTIONS.keys()
    if "inplace" in inspect.signature(getattr(nn, name)).parameters:
        assert calls_of(name, inplace=True) <= FUNCTIONS.keys()


def test_modules_of_timm_are_replaced_or_left():
    layers = pytest.importorskip("timm.layers.activations")
    kinds = {name for name, one in vars(layers).items() if isinstance(one, type)} - {"Tensor"}
    assert kinds - LEFT.keys() == {
        "Swish", "Mish", "Tanh", "HardSwish", "HardMish", "PReLU", "GELU", "GELUTanh", "QuickGELU",
    }  # fmt: skip


class One(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.last, self.function = nn.Linear(12, 10), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = {"threshold": (0.1, 0.0), "prelu": (self.last.weight[0, :1],)}
        name = FUNCTIONS[self.function].split(".")[1].rstrip("_")
        return self.function(self.last(x.flatten(1)), *more.get(name, ()))


@pytest.mark.parametrize("call", sorted(FUNCTIONS.values()))
def test_every_call_is_replaced(call):
    network = One(next(function for function, name in FUNCTIONS.items() if name == call))
    halves = call == "functional.glu"
    replace_in_classifier(
        network, nn.Softplus, name="n", image=(3, 2, 2), num_classes=5 if halves else 10
    )
    x = torch.randn(2, 3, 2, 2)
    y = network.last(x.flatten(1))
    value, gate = y.chunk(2, 1) if halves else (1, y)
    expected = value * nn.functional.softplus(gate)
    torch.testing.assert_close(network(x), expected)


WAYS = {
    "functional": lambda net, x: nn.functional.elu(x, inplace=True),
    "torch": lambda net, x: torch.relu_(x),
    "method": lambda net, x: x.tanh_(),
    "module": lambda net, x: net.act(x),
    "view": lambda net, x: nn.functional.relu(x.view(-1), inplace=True),
}


class InPlace(nn.Module):
    """Changes a tensor in place; lets the result go, reads both, or reads the result alone."""

    def __init__(self, way: str, reads: str) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(12, 8), nn.SiLU(inplace=True), nn.Linear(8, 10)
        self.way, self.reads = way, reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1))
        y = WAYS[self.way](self, x)
        if self.reads == "changed":
            return self.last(x)
        y = y.view(-1, 8)
        return self.last(x + y if self.reads == "both" else y)


@pytest.mark.parametrize("reads", ["changed", "both", "result"])
@pytest.mark.parametrize("way", WAYS)
def test_what_works_in_place_is_replaced_wherever_it_is_read(way, reads):
    network = InPlace(way, reads)
    replace_in_classifier(network, nn.Softplus, name="n", image=(3, 2, 2), num_classes=10)
    images = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    times = 2 if reads == "both" else 1

    def expected(x: torch.Tensor) -> torch.Tensor:
        return network.last(times * nn.functional.softplus(network.first(x.flatten(1))))

    found, wanted = network(images), expected(images)
    torch.testing.assert_close(found, wanted)
    slopes = [
        torch.autograd.grad(logits.square().sum(), list(network.parameters()))
        for logits in (found, wanted)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Where nobody reads the input again, it need not be copied and written over.
    stores = network.stores_calls if way != "module" else type(network.act).__name__ == "Storing"
    assert stores == (reads != "result")


@pytest.mark.parametrize("way", WAYS)
def test_fisher_factors_see_what_a_layer_put_out_before_it_was_changed(way):
    network = InPlace(way, "changed")
    replace_in_classifier(network, nn.Softplus, name="n", image=(3, 2, 2), num_classes=10)
    plain = nn.Sequential(nn.Flatten(), network.first, nn.Softplus(), network.last)
    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found, expected = (kronecker_factors(n, images, None, fisher="exact") for n in (network, plain))
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close((one.a, one.g), (other.a, other.g))


def test_activations_inside_norms_stand_after_them():
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4), nn.Flatten(), nn.Linear(16, 10)
    )
    replace_in_classifier(network, Marked, name="n", image=(3, 2, 2), num_classes=10)
    assert isinstance(network[1][0].act, nn.Identity)
    assert isinstance(network[1][1], Marked)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([nn.Linear(12, 10), nn.Sigmoid()], r"n: nothing to replace .* Sigmoid at 2 \(a gate"),
        ([nn.Linear(12, 9), nn.ReLU()], r"expected logits \(2, 10\) .* got \(2, 9\)"),
    ],
)
def test_what_cannot_be_replaced_is_named(layers, says):
    network = nn.Sequential(nn.Flatten(), *layers)
    with pytest.raises(NetworkError, match=says):
        replace_in_classifier(network, Marked, name="n", image=(3, 2, 2), num_classes=10)


@pytest.mark.parametrize(
    ("name", "side"), [("torchvision:mobilenet_v3_small", 32), ("timm:mobilevitv2_050", 64)]
)
def test_fisher_spectra_see_all_layers(name, side):
    network = made(name, lambda: Activation("swish(x)"), side=side)
    found = kronecker_factors(network, torch.randn(2, 3, side, side), None)
    assert not found.uncovered
    assert sum(layer.weights for layer in found.layers) == size(network)


SMALL_COATNET = {"depths": (1, 1, 1, 1), "embed_dim": (16, 32, 32, 64)}


@pytest.mark.parametrize(
    ("name", "options", "outside"),
    [
        # Its residual branches else begin with a scale of zero, and no gradient arrives in them.
        ("timm:mobilevit_xxs", {"zero_init_last": False}, set()),
        ("timm:deit_tiny_patch16_224", {"depth": 2}, {"cls_token", "pos_embed"}),
        # What is added to the attention.
        ("timm:coatnet_pico_rw_224", SMALL_COATNET, {"rel_pos"}),
    ],
)
def test_spectra_of_attention_networks_are_finite_and_what_is_left_out_is_named(
    name, options, outside
):
    network = made(name, lambda: Activation("swish(x)"), side=32, **options)
    found = fim_spectra(network, torch.randn(4, 3, 32, 32), None, quantiles=16)
    assert np.isfinite(found.quantiles).all()
    assert ((found.null_mass >= 0) & (found.null_mass < 1)).all()
    assert len(set(found.quantiles[:, 8].round(6))) > len(found.layers) / 2  # not all alike
    assert {one.split(".")[-1] for one in found.uncovered} == outside
    parameters, modules = dict(network.named_parameters()), dict(network.named_modules())
    left = [parameters[n].numel() if n in parameters else size(modules[n]) for n in found.uncovered]
    assert found.weights.sum() + sum(left) == size(network)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("torchvision:resnt18", {}, "no network 'resnt18' .did you mean 'resnet18'"),
        ("timm:resnet18.a1_in1k", {}, "no network 'resnet18.a1_in1k'"),
        ("timm:resnet18", {"pretrained": True}, "option 'pretrained' is refused, got True"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "option 'weights' is refused"),
        ("timm:resnet18", {"act_layer": "gelu"}, "searched function takes the place"),
    ],
)
def test_names_and_options_are_refused_when_loaded(name, options, says):
    with pytest.raises(NetworkError, match=says) as error:
        load(name, **options)
    assert "\n" not in str(error.value)


def test_a_builder_travels_and_its_hash_follows_name_and_options():
    builder = load("torchvision:resnet18")
    again = pickle.loads(pickle.dumps(builder))
    assert again == builder
    hashes = {
        one.source_hash
        for one in (builder, load("timm:resnet18"), load("timm:resnet18", drop_rate=0.1))
    }
    assert len(hashes) == 3
    with pytest.raises(NetworkError, match="unexpected keyword argument 'wdth'"):
        made("torchvision:resnet18", wdth=3)

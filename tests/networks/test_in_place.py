"""Networks that change an activation's output in place get the gradients of those that do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fisher_loops import kronecker_factors
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bo_act.activations.module import Activation
from bo_act.activations.operators import OPERATORS
from bo_act.errors import FeatureError, NetworkError
from bo_act.networks import check_gradients, load_network
from bo_act.specs import ModelSpec

TEXTS = {
    name: f"{name}(x)" if one.kind == "unary" else f"{name}(softplus(x),sigmoid(x))"
    for name, one in OPERATORS.items()
} | {
    "x": "x",
    "identity of identity": "identity(identity(x))",
    "identity of relu": "identity(relu(x))",
    "max with itself": "max(x,x)",
    "composed": "mul(arctan(x),sigmoid(x))",
}
FEW = ("relu(x)", "tanh(x)", "pow(softplus(x),sigmoid(x))", "x", "swish(x)")


def clean(text: str) -> Callable[[Tensor], Tensor]:
    """A function on a copy, giving out a copy: nothing in place can reach what it keeps."""
    activation = Activation(text)
    return lambda x: activation(x.clone()).clone()


# --- the module -----------------------------------------------------------------------------


def kept(function: Callable[..., Tensor], *arguments: Tensor) -> bool:
    """Whether torch keeps the output of a function for the backward pass."""
    seen: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = function(*arguments)
    return y.data_ptr() in {one.data_ptr() for one in seen}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_says_which_operators_keep_their_output(name, dtype):
    operator = OPERATORS[name]
    count = 1 if operator.kind == "unary" else 2
    arguments = [torch.rand(4, dtype=dtype, requires_grad=True) for _ in range(count)]
    assert kept(operator.function, *arguments) == operator.keeps_output


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_output_may_be_overwritten(text):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = (0.1 + torch.rand(3, 4, dtype=dtype)).requires_grad_()
        before = x.detach().clone()
        y = Activation(text)(x)
        expected = clean(text)(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        assert y.data_ptr() != x.data_ptr()
        y.detach().mul_(-3).sub_(1)
        assert torch.equal(x, before)
        if expected.requires_grad:  # no constant
            slopes = [torch.autograd.grad(one.sum(), x)[0] for one in (y, expected)]
            torch.testing.assert_close(*slopes, rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            Activation(text)(x).zero_()
        assert torch.equal(x, before)


def test_only_what_would_be_kept_is_copied():
    with torch.no_grad():
        assert not kept_and_copied("relu(x)")
    assert kept_and_copied("relu(x)")
    for text in ("swish(x)", "mul(tanh(x),sigmoid(x))", "add(relu(x),exp(x))"):
        assert not kept_and_copied(text)


def kept_and_copied(text: str) -> bool:
    """Whether the module copies its output."""
    with torch.profiler.profile() as profile:
        Activation(text)(torch.rand(4, requires_grad=True))
    return any(event.key == "aten::clone" for event in profile.key_averages())


# --- networks -------------------------------------------------------------------------------


class Blocks(nn.Module):
    """What networks do to an activation's output, in place or not.

    Args:
        function: the activation function.
        in_place: whether they do it in place.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, in_place: bool) -> None:
        super().__init__()
        self.function, self.in_place = function, in_place
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.norm, self.squeeze = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
            self.last = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.3, inplace=in_place)

    def shortcut(self, x: Tensor) -> Tensor:
        """Add a residual, to a tensor that was the function's input as well."""
        y = self.function(x)
        if not self.in_place:
            return y + x
        y += x
        return y

    def excited(self, x: Tensor) -> Tensor:
        """Multiply as squeeze and excitation does."""
        scale = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        if not self.in_place:
            return scale * self.function(x)
        y = self.function(x)
        y.mul_(scale)
        return y

    def halves(self, x: Tensor) -> Tensor:
        """Change a view."""
        y = self.function(x)
        if not self.in_place:
            return torch.cat([y[:, :4], functional.relu(2 * y[:, 4:])], 1)
        functional.relu_(y[:, 4:].mul_(2))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(self.norm(self.first(x)))
        x = self.drop(self.function(self.second(x)))
        x = self.halves(self.excited(x))
        x = functional.hardtanh(self.function(x), -2, 2, inplace=self.in_place)
        x = functional.dropout(self.function(x.mean((2, 3))), 0.2, self.training, self.in_place)
        return self.last(x)


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def passed(network: nn.Module, way: str) -> list[Tensor]:
    """Logits and gradients, by one of the ways in which networks are used."""
    torch.manual_seed(0)  # dropout
    x = images().requires_grad_()
    network.train(way != "evaluation")
    if way == "checkpointed":
        y = checkpoint(network, x, use_reentrant=False)
    elif way == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = network(x)
    elif way == "functional":
        y = torch.func.functional_call(network, dict(network.named_parameters()), (x,))
    elif way == "compiled":
        torch.compiler.reset()
        y = torch.compile(network, backend="aot_eager")(x)
    else:
        y = network(x)
    weights = [x, *network.parameters()]
    loss = y.float().square().sum()
    first = torch.autograd.grad(loss, weights, create_graph=way == "twice", allow_unused=True)
    if way == "twice":
        size = sum(slope.square().sum() for slope in first if slope is not None)
        first += torch.autograd.grad(size, weights, allow_unused=True)
    return [y, *(slope for slope in first if slope is not None)]


WAYS = (
    "training", "evaluation", "checkpointed", "autocast", "functional", "twice", "compiled",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", FEW)
def test_gradients_are_those_of_a_network_without_anything_in_place(text, way):
    found = passed(Blocks(Activation(text), in_place=True), way)
    expected = passed(Blocks(clean(text), in_place=False), way)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("text", FEW)
def test_values_without_gradients(text):
    found, expected = Blocks(Activation(text), in_place=True), Blocks(clean(text), in_place=False)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(found.eval()(images()), expected.eval()(images()))


@pytest.mark.parametrize("text", FEW)
def test_gradients_for_each_image(text):
    """torch.func: the gradient mode of one level says nothing of another."""

    def slopes(function: Callable[[Tensor], Tensor], in_place: bool) -> Tensor:
        def one(x: Tensor) -> Tensor:
            y = function(x)
            if in_place:
                y *= x
            else:
                y = y * x
            return y.square().sum()

        return torch.vmap(torch.func.grad(one))(images())

    torch.testing.assert_close(slopes(Activation(text), True), slopes(clean(text), False))


@pytest.mark.parametrize("text", FEW)
def test_fisher_factors_are_those_of_a_network_without_anything_in_place(text):
    networks = (Blocks(Activation(text), in_place=True), Blocks(clean(text), in_place=False))
    found, expected = (kronecker_factors(n, images(), None, fisher="exact") for n in networks)
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close((one.a, one.g), (other.a, other.g), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", FEW)
@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v3_small", "timm:lcnet_035", "timm:xcit_nano_12_p16_224"]
)
def test_networks_of_libraries_train(name, text):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    made = load_network(ModelSpec(name=name))(
        lambda: Activation(text), in_channels=3, image_size=32, num_classes=10, seed=0
    )
    other = copy.deepcopy(made)
    for module in other.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for network in (made, other):
        torch.manual_seed(0)
        network.train()(x).square().mean().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for one, same in zip(*gradients, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6, equal_nan=True)


# --- networks that change what a function has read --------------------------------------------


class Careless(nn.Module):
    """Changes an activation's input; harmless with ReLU, which needs its output alone."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 4), activation(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.mean((2, 3)))
        y = self.act(x)
        x += 1
        return self.last(x * y)


def test_a_network_that_changes_what_a_function_has_read_is_refused_with_the_place():
    state = torch.get_rng_state()
    with pytest.raises(NetworkError, match=r"^net.py: .* the function at act has read.*swish") as e:
        check_gradients(Careless, images(), name="net.py")
    assert "\n" not in str(e.value)
    with torch.no_grad(), pytest.raises(NetworkError, match="at act has read"):
        check_gradients(Careless, images(), name="net.py")
    check_gradients(lambda activation: Blocks(activation(), in_place=True), images(), name="net.py")
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(FeatureError, match="changes a tensor in place that its gradients need"):
        kronecker_factors(Careless(nn.SiLU), images(), None)


def test_other_errors_are_left_to_those_who_train():
    check_gradients(lambda activation: nn.Linear(99, 1), images(), name="net.py")

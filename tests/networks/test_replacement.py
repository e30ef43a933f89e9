"""Networks that were built without thinking of the search, with their functions replaced."""

from __future__ import annotations

import copy
import doctest
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bo_act
from bo_act.activations.module import Activation
from bo_act.errors import ExpressionError, NetworkError
from bo_act.networks import load_network
from bo_act.networks.layers import BETWEEN_0_AND_1, RECURRENT
from bo_act.networks.replacement import Replaced
from bo_act.specs import ModelSpec

torch.set_num_threads(1)


def images(side: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def names(done: Replaced) -> list[str]:
    return [place.name for place in done.replaced]


def kinds(done: Replaced) -> set[str]:
    return {place.kind for place in done.replaced}


def reasons(done: Replaced) -> dict[str, str]:
    return {place.name: place.reason for place in done.left}


def output(network: nn.Module, inputs) -> Tensor:
    torch.manual_seed(0)
    y = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    if isinstance(y, Tensor):
        return y
    return y["logits"] if "logits" in y else y["last_hidden_state"]


def check(network: nn.Module, inputs, own: str = "", *, close: float = 1e-5) -> Replaced:
    """Everything that holds of any network."""
    for mode in (False, True):
        network.train(mode)
        expected = output(network, inputs).detach()
        if own:
            same = copy.deepcopy(network)
            bo_act.replace_activations(same, own)
            torch.testing.assert_close(output(same, inputs), expected, atol=close, rtol=close)
    network.eval()
    expected = output(network, inputs).detach()
    states = set(network.state_dict())
    done = bo_act.replace_activations(network, "tanh(x)")
    for name in names(done):
        standing = network.get_submodule(name)
        assert isinstance(standing, Activation), name
        assert str(standing.expression) == "tanh(x)"
    assert len(network.state_dict()) <= len(states)
    assert not torch.allclose(output(network, inputs), expected, atol=1e-4)
    before = [weight.detach().clone() for weight in network.parameters()]
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    output(network, inputs).float().logsumexp(-1).sum().backward()
    assert [n for n, w in network.named_parameters() if w.grad is not None and w.grad.any()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    # And again, with the same places.
    again = bo_act.replace_activations(network, "arctan(x)")
    assert (names(again), kinds(again)) == (names(done), kinds(done))
    standing = [str(one.expression) for one in network.modules() if isinstance(one, Activation)]
    assert set(standing) == {"arctan(x)"}
    assert torch.equal(
        output(pickle.loads(pickle.dumps(network)).eval(), inputs), output(network.eval(), inputs)
    )
    return done


# --- libraries ------------------------------------------------------------------------------


def test_resnet18():
    from torchvision.models import resnet18

    done = check(resnet18(num_classes=5), images(), "relu(x)")
    assert len(names(done)) == 9
    assert kinds(done) == {"ReLU"}
    assert not done.left


def test_example_inputs_show_what_need_not_be_written_over():
    from torchvision.models import resnet18

    network = resnet18(num_classes=5)
    done = bo_act.replace_activations(network, "tanh(x)", inputs=images())
    assert isinstance(network.relu, Activation)  # and nothing around it
    assert "layer1.0.relu" in names(done)
    assert output(network, images()).shape == (2, 5)


def test_vit_of_torchvision():
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=5,
    )  # fmt: skip
    nn.init.normal_(network.heads.head.weight)
    done = check(network, images(), "gelu(x)")
    assert kinds(done) == {"GELU"}
    assert len(names(done)) == 2
    assert {place.kind for place in done.left} == {"MultiheadAttention"}


@pytest.mark.parametrize(
    ("name", "options", "own", "kind"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "ls_init_value": 1.0}, "gelu(x)", "GELU"),
        ("levit_128s", {"img_size": 64, "depth": (1, 1, 1)}, "", "Hardswish"),
    ],
)
def test_networks_of_timm(name, options, own, kind):
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=5, **options)
    done = check(network, images(64), own)
    assert {one.lower() for one in kinds(done)} == {kind.lower()}


@pytest.mark.parametrize("block", ["SwiGLU", "SwiGLUPacked", "GluMlp"])
def test_gated_blocks_of_timm_keep_their_product(block):
    layers = pytest.importorskip("timm.layers")
    network = getattr(layers, block)(6, 8)
    done = bo_act.replace_activations(network, "tanh(x)")
    assert names(done) == ["act"]
    x = vectors(3, 6)
    if block == "SwiGLU":
        hidden = network.fc1_g(x).tanh() * network.fc1_x(x)
    else:
        first, second = network.fc1(x).chunk(2, -1)
        hidden = first * second.tanh() if network.gate_last else first.tanh() * second
    torch.testing.assert_close(network(x), network.fc2(network.norm(hidden)))


def test_squeeze_and_excitation_keeps_its_gate():
    from torchvision.models import mobilenet_v3_small

    done = bo_act.replace_activations(mobilenet_v3_small(), "tanh(x)")
    assert kinds(done) == {"Hardswish", "ReLU"}
    assert set(reasons(done).values()) == {BETWEEN_0_AND_1}


# --- networks of one's own ------------------------------------------------------------------


def helper(x: Tensor) -> Tensor:
    return functional.relu(x)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))


def calling(way):
    """A class whose forward is one of the ways, and nothing else."""
    return type(way.__name__, (Base,), {"forward": way, "__module__": __name__})


def by_functional(self, x):
    return self.second(functional.relu(self.first(x)))


def by_torch(self, x):
    return self.second(torch.relu(self.first(x)))


def by_method(self, x):
    return self.second(self.first(x).relu())


def by_method_in_place(self, x):
    x = self.first(x)
    x.relu_()
    return self.second(x)


def by_statement(self, x):
    x = self.first(x)
    functional.relu(x, inplace=True)
    return self.second(x)


def by_helper(self, x):
    return self.second(helper(self.first(x)))


def by_inner(self, x):
    def inner(y):
        return functional.relu(y)

    return self.second(inner(self.first(x)))


def by_comprehension(self, x):
    return sum([self.second(functional.relu(self.first(one))) for one in (x, 2 * x)])


def by_default(self, x, function=functional.relu):
    return self.second(function(self.first(x)))


def by_decorator(self, x):
    return self.second(functional.relu(self.first(x)))


WAYS = [
    by_functional, by_torch, by_method, by_method_in_place, by_statement, by_helper, by_inner,
    by_comprehension, by_default, torch.enable_grad()(by_decorator),
]  # fmt: skip


@pytest.mark.parametrize("given", [False, True], ids=["read", "run"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_calls_are_found_and_replaced(way, given):
    network = calling(way)()
    x = vectors(4, 6)
    expected = network(x)
    hidden = network.first(x), network.first(2 * x)
    inputs = {"inputs": x} if given else {}
    same = copy.deepcopy(network)
    bo_act.replace_activations(same, "relu(x)", **inputs)
    torch.testing.assert_close(same(x), expected)
    done = bo_act.replace_activations(network, "tanh(x)", **inputs)
    assert names(done) == ["activation_of_calls.relu.activation"]
    assert isinstance(network.get_submodule(names(done)[0]), Activation)
    y = network.second(hidden[0].tanh())
    if way is by_comprehension:
        y = y + network.second(hidden[1].tanh())
    torch.testing.assert_close(network(x), y)
    network(x).sum().backward()
    assert network.first.weight.grad.any()


class Shortcut(Base):
    """Reads again what a module has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(self.act(x) + x)


@pytest.mark.parametrize("given", [False, True], ids=["read", "run"])
def test_modules_that_work_in_place_still_do(given):
    network, x = Shortcut(), vectors(4, 6)
    inputs = {"inputs": x} if given else {}
    for text, function in (("relu(x)", torch.relu), ("tanh(x)", torch.tanh)):
        done = bo_act.replace_activations(network, text, **inputs)
        assert names(done) == ["act.activation"]
        torch.testing.assert_close(network(x), network.second(2 * function(network.first(x))))


class Inherited(Base):
    def __init__(self) -> None:
        super().__init__()
        self.function = functional.elu
        self.bound = partial(functional.leaky_relu, negative_slope=0.1)

    @property
    def chosen(self):
        return functional.selu

    def inner(self, x: Tensor) -> Tensor:
        return functional.softsign(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(super().forward(x))
        return self.second(self.chosen(self.inner(self.bound(x)))).sigmoid()


@pytest.mark.parametrize("given", [False, True], ids=["read", "run"])
def test_calls_by_attributes_methods_properties_and_base_classes(given):
    network = Inherited()
    inputs = {"inputs": vectors(4, 6)} if given else {}
    done = bo_act.replace_activations(network, "arctan(x)", **inputs)
    found = {place.kind.rpartition(".")[2] for place in done.replaced}
    assert found == {"relu", "elu", "leaky_relu", "selu", "softsign"}
    assert {place.kind.rpartition(".")[2]: place.reason for place in done.left} == {
        "sigmoid": BETWEEN_0_AND_1
    }
    x = vectors(4, 6)
    y = network.first(x)
    for _ in range(5):
        y = y.arctan()
    torch.testing.assert_close(network(x), network.second(y).sigmoid())


def scores_of_attention(x: Tensor) -> Tensor:
    return torch.tanh(x / 50)


class WithLoss(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.second(scores_of_attention(functional.relu(self.first(x))))
        return x if labels is None else -functional.logsigmoid(x * labels).mean()


def test_losses_and_scores_of_attention_are_left():
    done = bo_act.replace_activations(WithLoss(), "tanh(x)")
    assert kinds(done) == {"functional.relu"}
    assert {one.kind: one.reason[:17] for one in done.left} == {
        "functional.logsigmoid": "perhaps of a loss"
    }
    seen = {"x": vectors(4, 6), "labels": torch.ones(4, 6)}
    done = bo_act.replace_activations(WithLoss(), "tanh(x)", inputs=seen)
    assert "functional.logsigmoid" in kinds(done)


def test_calls_that_are_chosen_while_the_network_runs_need_inputs():
    class Chosen(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(getattr(functional, "re" + "lu")(self.first(x)))

    with pytest.raises(NetworkError, match=r"nothing to replace in Chosen.* with inputs="):
        bo_act.replace_activations(Chosen(), "tanh(x)")
    done = bo_act.replace_activations(Chosen(), "tanh(x)", inputs=(vectors(4, 6),))
    assert kinds(done) == {"functional.relu"}


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class HardGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(x + 3) / 6


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clamp(min=0)
        return y + torch.randn_like(x) if self.training else y


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale * x)


def test_own_modules_are_replaced_if_they_are_elementwise():
    layers = [HardGate(), Rounded(), Centered(), Noise(), Scaled(), Learned(), nn.Flatten()]
    network = nn.Sequential(nn.Linear(6, 6), Swish(), *layers)
    state = torch.get_rng_state()
    done = bo_act.replace_activations(network, "tanh(x)")
    assert torch.equal(state, torch.get_rng_state())
    assert [(one.name, one.kind) for one in done.replaced] == [("1", "Swish")]
    assert reasons(done) == {"2": BETWEEN_0_AND_1, "7": BETWEEN_0_AND_1}  # the latter calls sigmoid
    assert [type(one) for one in network[2:]] == [type(one) for one in layers]


def test_a_replaced_network_is_scripted():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    bo_act.replace_activations(network, "tanh(x)")
    x = vectors(3, 4)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_the_half_of_a_glu_is_replaced():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(dim=1), nn.Flatten(), nn.Linear(4 * 16, 6))
    done = check(network, images(4), "sigmoid(x)")
    assert [(one.name, one.kind) for one in done.replaced] == [("1.activation", "GLU")]
    bo_act.replace_activations(network, "relu(x)")
    value, gate = network[0](images(4)).chunk(2, 1)
    torch.testing.assert_close(network[:2](images(4)), value * gate.relu())


class Attentive(nn.Module):
    def __init__(self, activation, **options) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation=activation, batch_first=True, **options
        )
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask)


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("relu", "relu"), (functional.gelu, "gelu"), (nn.ReLU(), "ReLU"), (nn.GELU(), "GELU")],
)
def test_transformer_layers_do_not_bypass_it_in_evaluation(activation, kind):
    network = Attentive(activation)
    x = vectors(3, 5, 8)
    own = f"{kind.lower()}(x)"
    expected = network.eval()(x)
    done = check(network, x, own)
    assert names(done) == ["encoder.layers.0.activation", "encoder.layers.1.activation"]
    assert kinds(done) == {kind}
    assert {one.kind for one in done.left} == {"MultiheadAttention"}
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    for given in (None, mask):
        with torch.no_grad():
            y, z = network.train()(x, given), network.eval()(x, given)
        keep = ~mask if given is not None else torch.ones_like(mask)
        torch.testing.assert_close(y[keep], z[keep])
        assert not torch.allclose(z[keep], expected[keep], atol=1e-3)


def test_decoder_layers():
    network = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    done = bo_act.replace_activations(network, "tanh(x)")
    assert names(done) == ["encoder.layers.0.activation", "decoder.layers.0.activation"]
    x = vectors(2, 3, 8)
    torch.testing.assert_close(network.train()(x, x), network.eval()(x, x))


def test_prelu_and_recurrent_layers():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.act, self.last = nn.GRU(6, 4), nn.PReLU(4), nn.Linear(4, 2)
            self.gate = nn.LSTMCell(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.recurrent(x)[0]))

    network = Mixed()
    done = bo_act.replace_activations(network, "tanh(x)")
    assert [(one.name, one.kind) for one in done.replaced] == [("act", "PReLU")]
    assert reasons(done) == {"recurrent": RECURRENT, "gate": RECURRENT}
    network(vectors(3, 6)).sum().backward()


# --- which ones -----------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.act(self.fc(x)))


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage10 = nn.Sequential(Block(), Block()), Block()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.stage10(self.stage1(x))))


def expected_of(network: Stages, act, gelu, last) -> Tensor:
    """What it computes, with functions by block."""
    x = vectors(3, 6)
    for i, block in enumerate((*network.stage1, network.stage10)):
        x = gelu[i](act[i](block.fc(x)))
    return network.head(last(x))


RELU, GELU, TANH = functional.relu, functional.gelu, torch.tanh
SHARED = nn.Tanh()


@pytest.mark.parametrize("given", [False, True], ids=["read", "run"])
@pytest.mark.parametrize(
    ("options", "act", "gelu", "last"),
    [
        ({"only": "stage1"}, [TANH, TANH, RELU], [TANH, TANH, GELU], RELU),
        ({"only": "stage1.0.act"}, [TANH, RELU, RELU], [GELU] * 3, RELU),
        ({"only": nn.ReLU}, [TANH] * 3, [GELU] * 3, RELU),
        ({"only": "relu"}, [TANH] * 3, [GELU] * 3, TANH),
        ({"only": ["gelu", nn.ReLU]}, [TANH] * 3, [TANH] * 3, RELU),
        ({"except_": "GELU"}, [TANH] * 3, [GELU] * 3, TANH),
        ({"except_": ["stage1.1", nn.ReLU]}, [RELU] * 3, [TANH, GELU, TANH], TANH),
        ({"except_": [nn.ReLU]}, [RELU] * 3, [TANH] * 3, TANH),
        ({"only": "stage1", "except_": "relu"}, [RELU] * 3, [TANH, TANH, GELU], RELU),
    ],
)
def test_only_and_except(options, act, gelu, last, given):
    network = Stages()
    inputs = {"inputs": {"x": vectors(3, 6)}} if given else {}
    done = bo_act.replace_activations(network, "tanh(x)", **options, **inputs)
    torch.testing.assert_close(network(vectors(3, 6)), expected_of(network, act, gelu, last))
    count = [*act, *gelu, last].count(TANH)
    assert (len(done.replaced), len(done.left)) == (count, 7 - count)
    assert all(place.reason for place in done.left)
    for name in names(done):
        assert isinstance(network.get_submodule(name), Activation)
    # The rest, then the first ones once more: kinds are those of the network as it was.
    bo_act.replace_activations(network, "arctan(x)")
    bo_act.replace_activations(network, "tanh(x)", **options, **inputs)
    sin = [[torch.arctan if f is not TANH else f for f in one] for one in (act, gelu, [last])]
    expected = expected_of(network, sin[0], sin[1], sin[2][0])
    torch.testing.assert_close(network(vectors(3, 6)), expected)


def test_one_place_after_the_other():
    """Modules that were replaced before are not caught by what is redirected around them."""
    network = Stages()
    bo_act.replace_activations(network, "tanh(x)", only=nn.ReLU)
    bo_act.replace_activations(network, "arctan(x)", only="gelu")
    bo_act.replace_activations(network, "softplus(x)", only="relu", except_=nn.ReLU)
    y = expected_of(network, [TANH] * 3, [torch.arctan] * 3, functional.softplus)
    torch.testing.assert_close(network(vectors(3, 6)), y)


def test_a_function_for_each_stage():
    network = Stages()
    done = bo_act.replace_activations(
        network, {"stage1": "tanh(x)", "stage1.1": nn.SiLU, "": Activation("arctan(x)")}
    )
    assert len(done.replaced) == 7
    silu, sin = functional.silu, torch.arctan
    y = expected_of(network, [TANH, silu, sin], [TANH, silu, sin], sin)
    torch.testing.assert_close(network(vectors(3, 6)), y)
    network = Stages()
    done = bo_act.replace_activations(network, {"stage10": "tanh(x)"})
    assert {one.reason for one in done.left} == {"in no stage of the mapping"}
    assert len(done.replaced) == 2


@pytest.mark.parametrize(
    ("activation", "options", "message"),
    [
        ("tanh(x)", {"only": "stage2"}, r"only: 'stage2' is neither.*did you mean 'stage1'"),
        ("tanh(x)", {"only": "gleu"}, r"'gleu' is neither.*did you mean 'gelu'"),
        ("tanh(x)", {"except_": "stge10"}, r"except_: 'stge10'.*did you mean 'stage10'"),
        ("tanh(x)", {"only": "head"}, r"only 'head': no activation function there.*has ReLU, func"),
        ("tanh(x)", {"only": nn.ELU}, "nothing to replace in Stages.* ReLU at stage1.0.act .not n"),
        ("tanh(x)", {"only": "softmax"}, "'softmax' is neither .*the network has ReLU"),
        ("tanh(x)", {"only": nn.ReLU()}, r"only: expected names .*got ReLU\(\)"),
        ("tanh(x)", {"except_": ["relu", "gelu"]}, r"replace in Stages: .*ReLU at stage1"),
        ({"stage3": "tanh(x)"}, {}, "stage: 'stage3' is neither"),
        ({}, {}, "empty mapping"),
        (nn.Tanh(), {}, r"got Tanh\(\); give the class"),
        (lambda: 3, {}, "one that made int"),
        (lambda: SHARED, {}, "the same module twice"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_the_network_as_it_was(activation, options, message):
    network = Stages()
    expected = network(vectors(3, 6))
    with pytest.raises(NetworkError, match=message) as error:
        bo_act.replace_activations(network, activation, **options)
    assert "\n" not in str(error.value)
    assert torch.equal(network(vectors(3, 6)), expected)
    assert not [name for name, _ in network.named_modules() if "activation" in name]


def test_networks_without_activation_functions():
    with pytest.raises(NetworkError, match=r"nothing to replace in Linear: looked for.* 1 module"):
        bo_act.replace_activations(nn.Linear(2, 2), "tanh(x)")
    with pytest.raises(NetworkError, match="an activation layer itself"):
        bo_act.replace_activations(nn.ReLU(), "tanh(x)")
    with pytest.raises(NetworkError, match=r"expected a torch.nn.Module, got str"):
        bo_act.replace_activations("resnet18", "tanh(x)")
    with pytest.raises(
        NetworkError, match="only 'gate': Sigmoid at gate cannot be replaced: a gate"
    ):
        bo_act.replace_activations(
            nn.Sequential(OrderedDict(gate=nn.Sigmoid())), "tanh(x)", only="gate"
        )
    with pytest.raises(ExpressionError):
        bo_act.replace_activations(Stages(), "tanhh(x)")


def test_what_was_done_reads_well():
    network = Stages()
    text = repr(bo_act.replace_activations(network, "tanh(x)", except_="gelu"))
    assert text.splitlines() == [
        "Replaced 4 activation functions, left 3",
        "  stage1.*.act.activation  ReLU (2 times)",
        "  stage10.act.activation  ReLU",
        "  activation_of_calls.relu.activation  functional.relu",
        "  left: stage1.*  functional.gelu (2 times): named in except_",
        "  left: stage10  functional.gelu: named in except_",
    ]


def test_modules_get_the_mode_and_the_device_of_the_network():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval().to("meta", torch.bfloat16)
    bo_act.replace_activations(network, nn.PReLU)
    assert not network[1].training
    assert network[1].weight.device.type == "meta"
    assert network[1].weight.dtype == torch.bfloat16


# --- transformers ---------------------------------------------------------------------------

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": 40, "intermediate_size": 24, **TINY}
IMAGE = {"image_size": 32, "num_labels": 5}


@pytest.mark.parametrize(
    ("kind", "task", "options", "own", "expected"),
    [
        ("gpt2", "CausalLM", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}, "",
         {"NewGELUActivation": 2}),
        ("gpt2", "CausalLM", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2,
         "activation_function": "relu"}, "relu(x)", {"ReLU": 2}),
        ("bert", "SequenceClassification", TEXT, "", {"GELUActivation": 2, "Tanh": 1}),
        ("roberta", "MaskedLM", TEXT, "gelu(x)", {"GELUActivation": 2, "functional.gelu": 1}),
        ("llama", "CausalLM", TEXT, "swish(x)", {"SiLUActivation": 2}),
        ("vit", "ImageClassification", {**TINY, **IMAGE, "patch_size": 8, "intermediate_size": 24},
         "gelu(x)", {"GELUActivation": 2}),
        ("convnext", "ImageClassification", {**IMAGE, "hidden_sizes": [8, 8, 8, 8],
         "depths": [1, 1, 1, 1], "layer_scale_init_value": 1.0}, "gelu(x)", {"GELUActivation": 4}),
    ],
)  # fmt: skip
def test_networks_of_transformers(kind, task, options, own, expected):
    transformers = pytest.importorskip("transformers")
    options = {**options, "initializer_range": 0.3}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    network = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    if task == "ImageClassification":
        inputs = {"pixel_values": images()}
    else:
        config.pad_token_id = 0
        ids = torch.randint(2, 40, (2, 7), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids}
    done = check(network, inputs, own, close=1e-4)
    found = [place.kind for place in done.replaced]
    assert {one: found.count(one) for one in found} == expected


def test_all_activations_of_transformers_are_known():
    activations = pytest.importorskip("transformers.activations")
    left = {"sigmoid", "linear", "laplace", "sqrtsoftplus"}
    for name in activations.ACT2CLS:
        network = nn.Sequential(nn.Linear(4, 4), activations.ACT2FN[name], nn.ReLU())
        done = bo_act.replace_activations(network, "tanh(x)")
        assert (names(done) == ["2"]) == (name in left), name


VIT = {**TINY, "patch_size": 8, "intermediate_size": 24}


def of_transformers(name: str, **options):
    pytest.importorskip("transformers")
    return load_network(ModelSpec(name=f"transformers:{name}", options=options))


@pytest.mark.parametrize(
    ("name", "options", "places"),
    [("vit", VIT, 2), ("convnext", {"hidden_sizes": [8] * 4, "depths": [1] * 4}, 4)],
)
def test_classifiers_of_transformers_by_name(name, options, places):
    builder = of_transformers(name, **options)
    shape = {"in_channels": 1, "image_size": 32, "num_classes": 4}
    one, same, other = (builder(partial(Activation, "tanh(x)"), **shape, seed=s) for s in (1, 1, 2))
    x = images()[:, :1]
    assert one(x).shape == (2, 4)
    assert torch.equal(one.eval()(x), same.eval()(x))
    assert not torch.equal(one(x), other.eval()(x))
    assert sum(isinstance(module, Activation) for module in one.modules()) == places


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt2", {}, r"transformers:gpt2: .* no image classifier.*bo_act.replace_activations"),
        ("vitt", {}, "no network 'vitt' .did you mean 'vit'"),
        ("vit", {"hidden_act": "relu"}, "option 'hidden_act' is refused"),
    ],
)
def test_names_and_options_of_transformers_that_are_refused(name, options, message):
    with pytest.raises(NetworkError, match=message):
        of_transformers(name, **options)


def test_unknown_options_of_transformers():
    builder = of_transformers("vit", hiden_size=16)
    with pytest.raises(NetworkError, match=r"unknown option 'hiden_size' .did you mean 'hidden_si"):
        builder(nn.Tanh, in_channels=3, image_size=32, num_classes=4, seed=0)


def test_the_example_runs():
    (found,) = doctest.DocTestFinder().find(bo_act.replace_activations, "it", globs={})
    failed, tried = doctest.DocTestRunner().run(found)
    assert (failed, tried) == (0, 5)

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bo_act.activations.module import Activation
from bo_act.errors import ContentNotFoundError, NetworkError
from bo_act.networks import NetworkBuilder, load_network
from bo_act.specs import ModelSpec

GOOD = """
from torch import nn

def build(activation, *, in_channels, image_size, num_classes, width=4):
    inputs = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), activation(), nn.Linear(width, num_classes)
    )
"""


def load(folder: Path, text: str, **options: object) -> NetworkBuilder:
    path = folder / "net.py"
    path.write_text(text, encoding="utf-8")
    return load_network(ModelSpec(name=str(path), options=options))


def made(builder: NetworkBuilder, activation=nn.ReLU, *, seed: int = 0, side: int = 8, channels=1):
    return builder(activation, in_channels=channels, image_size=side, num_classes=10, seed=seed)


def size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_builder_travels_with_its_source(tmp_path):
    builder = load(tmp_path, GOOD, width=6)
    packed = pickle.dumps(builder)
    expected = made(builder).state_dict()
    # What the file has become does not matter, nor whether there is one, as on another machine.
    for change in (lambda p: p.write_text(GOOD + "\nx = 1\n"), Path.unlink):
        change(tmp_path / "net.py")
        again = pickle.loads(packed)
        assert again == builder
        assert again.source_hash == builder.source_hash
        found = made(again).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


# --- the shipped files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "channels", "parameters"),
    [
        ("mlp", 8, 1, 13_130),
        ("mlp", 28, 1, 59_210),
        ("small_cnn", 28, 1, 24_058),
        ("small_cnn", 8, 1, 24_058),
        ("all_cnn_c", 32, 3, 1_369_738),
        ("resnet56", 32, 3, 853_018),
        ("vit", 32, 3, 2_693_194),
    ],
)
def test_shipped_networks_have_the_size_they_state(name, side, channels, parameters):
    builder = load_network(ModelSpec(name=name))
    network = made(builder, side=side, channels=channels)
    assert size(network) == parameters
    assert network(torch.zeros(2, channels, side, side)).shape == (2, 10)
    assert f"{parameters:,}" in sys.modules[builder.build.__module__].__doc__


@pytest.mark.parametrize(
    ("name", "count"),
    [("mlp", 3), ("small_cnn", 3), ("all_cnn_c", 8), ("resnet56", 55), ("vit", 6)],
)
def test_each_activation_layer_is_a_module_of_its_own(name, count):
    network = made(load_network(ModelSpec(name=name)), nn.Softplus)
    layers = [module for module in network.modules() if isinstance(module, nn.Softplus)]
    assert len(layers) == len({id(layer) for layer in layers}) == count


def test_all_cnn_c_is_the_published_one():
    network = made(load_network(ModelSpec(name="all_cnn_c")), side=32, channels=3)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [
        (layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
        for layer in layers
    ] == [
        (96, 3, 1, 1),
        (96, 3, 1, 1),
        (96, 3, 2, 1),
        (192, 3, 1, 1),
        (192, 3, 1, 1),
        (192, 3, 2, 1),
        (192, 3, 1, 1),
        (192, 1, 1, 0),
        (10, 1, 1, 0),
    ]


def test_resnet56_is_the_published_one():
    builder = load_network(ModelSpec(name="resnet56"))
    network = made(builder, side=32, channels=3)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    shapes = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in layers
    ]
    assert shapes == [
        (3, 16, 3, 1), *[(16, 16, 3, 1)] * 18,
        (16, 32, 3, 2), *[(32, 32, 3, 1)] * 17,
        (32, 64, 3, 2), *[(64, 64, 3, 1)] * 17,
    ]  # fmt: skip
    # The published sizes of ResNet-20 and ResNet-110, in millions (table 6).
    for blocks, millions in ((3, 0.27), (18, 1.7)):
        spec = ModelSpec(name="resnet56", options={"blocks": blocks})
        shown = f"{size(made(load_network(spec), side=32, channels=3)) / 1e6:.2g}"
        assert float(shown) == millions


def test_resnet56_shortcuts_pass_the_input_on():
    network = made(load_network(ModelSpec(name="resnet56")), nn.Identity, side=7, channels=3)
    halving = network[12]
    for weight in halving.parameters():
        nn.init.zeros_(weight)
    x = torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    y = halving(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


def test_vit_sees_patches_row_by_row():
    spec = ModelSpec(name="vit", options={"width": 6, "heads": 2, "depth": 1})
    tokens = made(load_network(spec), side=8)[0]
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weight, bias = tokens.patches.weight.flatten(1), tokens.patches.bias
    for place, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        pixels = images[:, 0, row : row + 4, column : column + 4].flatten(1)
        expected = pixels @ weight.T + bias + tokens.position[place]
        torch.testing.assert_close(tokens(images)[:, place], expected)


def test_vit_without_positions_does_not_know_the_order_of_patches():
    network = made(load_network(ModelSpec(name="vit")), nn.GELU, side=8).double()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    swapped = images.roll(4, dims=3)
    assert not torch.allclose(network(images), network(swapped))
    nn.init.zeros_(network[0].position)
    torch.testing.assert_close(network(images), network(swapped))


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "all_cnn_c", "resnet56", "vit"])
def test_gradients_reach_all_parameters(name):
    network = made(load_network(ModelSpec(name=name)), nn.Softplus)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network(images).logsumexp(dim=1).sum().backward()
    still = {
        name
        for name, weight in network.named_parameters()
        if weight.grad is None or not weight.grad.any()
    }
    assert not still


def test_options_reach_the_network():
    assert size(made(load_network(ModelSpec(name="mlp", options={"widths": [8]})))) == 610
    plain = made(load_network(ModelSpec(name="small_cnn", options={"batch_norm": False})))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    dropping = {"dropout": 0.5, "input_dropout": 0.2, "activate_logits": True}
    network = made(load_network(ModelSpec(name="all_cnn_c", options=dropping)), nn.Softplus)
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.2, 0.5, 0.5]
    assert sum(isinstance(module, nn.Softplus) for module in network.modules()) == 9
    narrow = {"patch": 2, "depth": 2, "width": 8, "heads": 4, "mlp_ratio": 3}
    network = made(load_network(ModelSpec(name="vit", options=narrow)))
    blocks = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    assert [(block.num_heads, block.embed_dim) for block in blocks] == [(4, 8), (4, 8)]
    assert network[0].position.shape == (16, 8)
    assert network[1].mlp[1].out_features == 24


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet56", {"blocks": 0}, "expected at least one block a stage, got 0"),
        ("resnet56", {"widths": []}, "narrower than the one before, got []"),
        ("resnet56", {"widths": [16, 8]}, "narrower than the one before, got [16, 8]"),
        ("vit", {"patch": 3}, "multiple of the patch of 3 pixels, got 8"),
        ("vit", {"heads": 5}, "multiple of 5 heads, got 192"),
        ("vit", {"depth": 0}, "expected depth of at least 1, got 0"),
        ("vit", {"mlp_ratio": 0}, "expected mlp_ratio of at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(name, options, says):
    with pytest.raises(NetworkError) as error:
        made(load_network(ModelSpec(name=name, options=options)))
    assert says in one_line(error)


def test_small_cnn_refuses_images_that_it_would_pool_away():
    with pytest.raises(NetworkError, match="at least 8 pixels a side for 3 blocks, got 6") as error:
        made(load_network(ModelSpec(name="small_cnn")), side=6)
    one_line(error)


# --- seeds -----------------------------------------------------------------------------------


class Shifted(nn.Module):
    """An activation with a random weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + self.shift)


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "all_cnn_c", "resnet56", "vit"])
def test_initial_weights_follow_from_the_seed_alone(name):
    builder = load_network(ModelSpec(name=name))
    first = made(builder, nn.ReLU, seed=3)
    torch.rand(5)
    second = made(builder, Shifted, seed=3)
    other = made(builder, nn.ReLU, seed=4)
    ours = {key: value for key, value in second.state_dict().items() if "shift" not in key}
    assert ours.keys() == first.state_dict().keys()
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in ours.items())
    assert not all(
        torch.equal(weight, same)
        for weight, same in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_global_random_state_is_left_alone(tmp_path):
    builder = load(tmp_path, GOOD)
    before = torch.get_rng_state()
    made(builder)
    assert torch.equal(torch.get_rng_state(), before)

    failing = load(tmp_path, BROKEN)
    with pytest.raises(NetworkError):
        made(failing)
    assert torch.equal(torch.get_rng_state(), before)


BROKEN = """
import torch

def build(activation, *, in_channels, image_size, num_classes):
    torch.rand(3)
    raise KeyError("a line\\nand another")
"""


# --- loading ---------------------------------------------------------------------------------


def test_source_hash_follows_the_bytes_and_the_options(tmp_path):
    hashes = [
        load(tmp_path, GOOD).source_hash,
        load(tmp_path, GOOD, width=4).source_hash,
        load(tmp_path, GOOD, width=5).source_hash,
        load(tmp_path, GOOD + "\n").source_hash,
    ]
    assert len(set(hashes)) == 4
    assert all(len(text) == 64 for text in hashes)
    assert load(tmp_path, GOOD, width=5).source_hash == hashes[2]


def test_a_file_changed_within_the_same_second_is_read_anew(tmp_path):
    assert size(made(load(tmp_path, GOOD))) == 310
    assert size(made(load(tmp_path, GOOD.replace("width=4", "width=5")))) == 385
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_loading_hides_no_other_module(tmp_path):
    before = set(sys.modules)
    load(tmp_path, GOOD)
    added = set(sys.modules) - before
    assert all(name.startswith("_bo_act_file_") for name in added)
    before = set(sys.modules)
    with pytest.raises(NetworkError):
        load(tmp_path, "raise RuntimeError('no')")
    assert set(sys.modules) == before


def test_dataclasses_in_a_model_file_work(tmp_path):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text = head + "@dataclass\nclass Block:\n    width: int = 4\n" + GOOD
    made(load(tmp_path, text))


def test_unknown_names_are_the_librarys_errors():
    with pytest.raises(ContentNotFoundError, match="did you mean 'mlp'"):
        load_network(ModelSpec(name="mpl"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named"),
        ("def build(:", "SyntaxError: "),
        ("import sys\nsys.exit(1)", "SystemExit: 1"),
        ("raise RuntimeError('one\\n two')", "RuntimeError: one two"),
        ("x = 1", "expected a function build(activation, *, <facts of the data>,"),
        ("build = 3", "got int 3; define it in this file"),
        ("def build(activation, one): ...", "missing a required argument: 'one'"),
        (
            "def build(activation, *, in_chanels): ...",
            "'in_chanels' (did you mean 'in_channels'?); facts of data are in_channels, image_size",
        ),
        ("def build(*, in_channels, image_size, num_classes): ...", "too many positional"),
        (
            "def build(activation, *, in_channels, image_size, num_classes, depth): ...",
            "argument: 'depth'; facts of data are",
        ),
    ],
)
def test_bad_files_are_refused_when_loaded(tmp_path, text, says):
    with pytest.raises(NetworkError) as error:
        load(tmp_path, text)
    assert says in one_line(error)
    assert str(tmp_path / "net.py") in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widht": 3}, "unknown option 'widht' (did you mean 'width'?)"),
        ({"zzz": 3}, "unknown option 'zzz'; known options: width"),
        ({"num_classes": 3}, "unknown option 'num_classes'"),
        ({"activation": 3}, "unknown option 'activation'"),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, says):
    with pytest.raises(NetworkError) as error:
        load(tmp_path, GOOD, **options)
    assert says in one_line(error)


def test_a_build_with_keywords_takes_any_option(tmp_path):
    text = GOOD.replace("width=4", "**rest").replace("width", "rest['anything']")
    builder = load(tmp_path, text, anything=6)
    assert size(made(builder)) == 460
    with pytest.raises(NetworkError, match="unknown option 'image_size'"):
        load(tmp_path, text, anything=6, image_size=3)


def test_failures_inside_build_name_the_cause(tmp_path):
    with pytest.raises(
        NetworkError, match=r"build failed for 1 channels, images of 8 x 8"
    ) as error:
        made(load(tmp_path, BROKEN))
    assert "KeyError: 'a line" in one_line(error)
    with pytest.raises(NetworkError, match="TypeError: "):
        made(load(tmp_path, GOOD, width="wide"))


def test_build_has_to_return_a_module(tmp_path):
    head = "def build(activation, *, in_channels, image_size, num_classes):\n"
    with pytest.raises(NetworkError, match=r"expected build to return a torch.nn.Module, got int"):
        made(load(tmp_path, head + "    activation()\n    return 3\n"))


def test_build_has_to_use_the_activation(tmp_path):
    with pytest.raises(NetworkError, match=r"never called activation\(\)"):
        made(load(tmp_path, GOOD.replace("activation(), ", "nn.ReLU(), ")))


def test_a_builder_is_frozen_and_hashable(tmp_path):
    builder = load(tmp_path, GOOD)
    with pytest.raises(AttributeError):
        builder.name = "other"  # type: ignore[misc]
    assert builder == load(tmp_path, GOOD)
    assert hash(builder) == hash(load(tmp_path, GOOD))


MODULES = """
from copy import deepcopy
from torch import nn

class Block(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.linear, self.act = nn.Linear(width, width), act

    def forward(self, x):
        return x + self.act(self.linear(x))

def build(activation, *, in_channels, image_size, num_classes):
    inputs = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 4), activation(inplace=True), Block(4, activation),
        activation, nn.ModuleList([deepcopy(activation)])[0], nn.Linear(4, num_classes),
    )
"""


def test_a_network_may_use_the_activation_as_a_module(tmp_path):
    """Each place has a fresh one, as if it had been called there."""
    builder = load(tmp_path, MODULES)
    for activation, kind in ((nn.Tanh, nn.Tanh), (Activation("silu"), Activation)):
        network = made(builder, activation)
        found = [module for module in network.modules() if isinstance(module, kind)]
        assert len(set(map(id, found))) == 4
        assert activation not in found
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert pickle.dumps(network.state_dict())
        kinds = {type(module).__module__ for module in network.modules()}
        assert not [name for name in kinds if name.endswith("builder")]
    expected = made(builder, lambda: Activation("silu")).state_dict()
    assert all(torch.equal(network.state_dict()[k], v) for k, v in expected.items())


def test_a_module_has_no_names_of_places(tmp_path):
    with pytest.raises(NetworkError, match=r"activation\(\) without a name"):
        made(load(tmp_path, MODULES), {"early": nn.Tanh, "late": nn.ReLU})

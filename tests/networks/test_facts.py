"""Facts of the data: a model file gets those that its signature asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bo_act.activations.module import Activation
from bo_act.errors import NetworkError
from bo_act.networks import (
    NetworkBuilder,
    check_gradients,
    initialize,
    load_network,
    materialize,
)
from bo_act.specs import ModelSpec

IMAGES = {"in_channels": 1, "image_size": 8, "num_classes": 10, "out_features": 10,
          "in_features": 64}  # fmt: skip
TABLE = {"in_features": 5, "out_features": 1, "input_shape": (5,)}
TOKENS = {"vocabulary": 11, "context": 6, "out_features": 11, "input_shape": (6,)}

BODY = """
    seen.update(ASKED)
    return nn.Sequential(activation(), nn.Linear(1, 1))
"""


def load(folder: Path, head: str, **options: object) -> NetworkBuilder:
    asked = head.replace("activation, ", "").replace("*, ", "")
    names = [part.split("=")[0].strip() for part in asked.split(",")]
    shown = ", ".join(f"**{n[2:]}" if n.startswith("**") else f"{n}={n}" for n in names if n)
    text = f"from torch import nn\nseen = {{}}\ndef build({head}):{BODY}"
    (folder / "net.py").write_text(text.replace("ASKED", shown))
    return load_network(ModelSpec(name=str(folder / "net.py"), options=options))


def seen(builder: NetworkBuilder, facts: dict[str, object]) -> dict[str, object]:
    builder(nn.ReLU, seed=0, **facts)
    found = sys.modules[builder.build.__module__].seen
    return dict(found)


@pytest.mark.parametrize(
    ("head", "options", "facts", "expected"),
    [
        ("activation, *, in_channels, image_size, num_classes", {}, IMAGES,
         {"in_channels": 1, "image_size": 8, "num_classes": 10}),
        ("activation, in_features, out_features", {}, TABLE, {"in_features": 5, "out_features": 1}),
        ("activation, *, vocabulary, context", {}, TOKENS, {"vocabulary": 11, "context": 6}),
        ("activation, *, input_shape", {}, TABLE, {"input_shape": (5,)}),
        ("activation, *, in_features, num_classes", {}, IMAGES,
         {"in_features": 64, "num_classes": 10}),
        ("activation, **facts", {}, TABLE, TABLE),
        ("activation, **facts", {"width": 3}, TOKENS, TOKENS | {"width": 3}),
        # As it was for images before there were other facts.
        ("activation, **facts", {}, IMAGES,
         {"in_channels": 1, "image_size": 8, "num_classes": 10}),
        ("activation, *, num_classes=3, context=7, in_features=9", {}, IMAGES,
         {"num_classes": 10, "context": 7, "in_features": 9}),
        ("activation, *, in_channels, **more", {"width": 3}, IMAGES,
         {"in_channels": 1, "width": 3}),
        # What is set among the options stands, as a larger vocabulary.
        ("activation, *, vocabulary, context=9", {"vocabulary": 64}, TOKENS,
         {"vocabulary": 64, "context": 6}),
        ("activation, *, width=3", {}, TABLE, {"width": 3}),
    ],
)  # fmt: skip
def test_build_gets_what_its_signature_asks_for(tmp_path, head, options, facts, expected):
    assert seen(load(tmp_path, head, **options), facts) == expected


@pytest.mark.parametrize(
    ("head", "facts", "says"),
    [
        ("activation, *, in_channels", TABLE,
         "build asks for 'in_channels', which this data set does not have; its facts are "
         "in_features = 5, out_features = 1, input_shape = (5,); images are square"),
        ("activation, *, vocabulary", IMAGES, "asks for 'vocabulary', which this data set does"),
        ("activation, *, num_classes", TABLE, "classes are whole numbers of shape (n,)"),
    ],
)  # fmt: skip
def test_a_fact_that_there_is_not_is_told_with_those_there_are(tmp_path, head, facts, says):
    builder = load(tmp_path, head)
    with pytest.raises(NetworkError) as caught:
        builder(nn.ReLU, seed=0, **facts)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_fact_is_refused(tmp_path):
    builder = load(tmp_path, "activation, *, in_features")
    with pytest.raises(NetworkError, match=r"got 'in_feature' \(did you mean 'in_features'\?\)"):
        builder(nn.ReLU, seed=0, in_feature=3)
    with pytest.raises(NetworkError, match=r"'in_feature' \(did you mean 'in_features'\?\)"):
        load(tmp_path, "activation, *, in_feature")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "mlp"])
def test_networks_of_images_take_no_tables(name):
    builder = load_network(ModelSpec(name=name))
    with pytest.raises(NetworkError, match="build asks for 'in_channels'"):
        builder(nn.ReLU, seed=0, **TABLE)


# --- the shipped ones ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "facts", "inputs", "outputs", "size"),
    [
        ("tabular_mlp", {"in_features": 10, "out_features": 1}, torch.zeros(3, 10), (3, 1),
         (9089, 3)),
        ("tabular_mlp", {"in_features": 30, "out_features": 2}, torch.zeros(3, 30), (3, 2),
         (10434, 3)),
        ("gpt", {"vocabulary": 103, "context": 64}, torch.zeros(3, 64).long(), (3, 64, 103),
         (117376, 2)),
    ],
)  # fmt: skip
def test_shipped_networks_have_the_size_they_state(name, facts, inputs, outputs, size):
    parameters, functions = size
    builder = load_network(ModelSpec(name=name))
    network = builder(lambda: Activation("gelu(x)"), seed=0, **facts)
    assert network(inputs).shape == outputs
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert sum(isinstance(one, Activation) for one in network.modules()) == functions
    assert f"{parameters:,}" in sys.modules[builder.build.__module__].__doc__


def test_a_gpt_sees_no_token_that_follows():
    network = load_network(ModelSpec(name="gpt"))(nn.GELU, seed=0, vocabulary=11, context=6).eval()
    tokens = torch.arange(12).view(2, 6) % 11
    changed = tokens.clone()
    changed[:, 3] = 8
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()
    assert network(tokens[:, :4]).shape == (2, 4, 11)
    builder = load_network(ModelSpec(name="gpt", options={"heads": 5}))
    with pytest.raises(NetworkError, match="multiple of 5 heads"):
        builder(nn.GELU, seed=0, **TOKENS)


# --- an example batch in place of the shape of an image -----------------------------------------


class OfDict(nn.Module):
    def __init__(self, activation=nn.Tanh) -> None:
        super().__init__()
        self.ids, self.lazy, self.out = nn.Embedding(11, 8), nn.LazyLinear(8), nn.Linear(8, 3)
        self.act = activation()

    def forward(self, *, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return {"logits": self.out(self.act(self.lazy(torch.cat([self.ids(ids).mean(1), x], 1))))}


EXAMPLE = {"ids": torch.arange(12).view(2, 6) % 11, "x": torch.zeros(2, 5)}


def test_networks_are_shown_inputs_of_any_form(tmp_path):
    network = OfDict()
    materialize(network, tmp_path, inputs=EXAMPLE, seed=3)
    assert network.lazy.weight.shape == (8, 13)
    with torch.no_grad():
        network.ids.weight.mul_(100)
    initialize(network, "unit_variance", inputs=EXAMPLE, seed=3)
    found = []
    network.lazy.register_forward_hook(lambda _, __, y: found.append(y.square().mean().item()))
    ids = EXAMPLE["ids"][torch.arange(256) % 2]
    network(ids=ids, x=torch.randn(256, 5, generator=torch.Generator().manual_seed(9)))
    assert found[0] == pytest.approx(1, rel=0.3)
    with pytest.raises(NetworkError, match=r"\{'ids': \(2, 6\)\}, which its lazy layers need"):
        materialize(OfDict(), tmp_path, inputs={"ids": EXAMPLE["ids"]}, seed=0)

    class InPlace(OfDict):
        def forward(self, *, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            y = self.lazy(torch.cat([self.ids(ids).mean(1), x], 1))
            z = self.act(y)
            y += 1
            return {"logits": self.out(z)}

    for kind in (OfDict, InPlace):

        def build(activation: object, kind: type = kind) -> nn.Module:
            made = kind(activation)
            materialize(made, tmp_path, inputs=EXAMPLE, seed=3)
            return made

        if kind is OfDict:
            check_gradients(build, EXAMPLE, name="net")
        else:
            with pytest.raises(NetworkError, match="changes a tensor in place that the function"):
                check_gradients(build, EXAMPLE, name="net")

"""Inputs, outputs and losses of all kinds: Fisher factors against loops, in float64."""

from __future__ import annotations

import doctest
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fisher_loops
import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.errors import FeatureError
from bo_act.features import compute
from bo_act.features.compute import compute_features
from bo_act.features.fisher_worker import FisherJob
from bo_act.fisher import spectra
from bo_act.fisher.spectra import fim_spectra
from bo_act.spaces.space import Space
from bo_act.specs import FeaturesSpec


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def randint(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Mixed(nn.Module):
    """Tokens that see those before them; its outputs come in any form."""

    def __init__(self, outputs: str = "tokens", form: str = "tensor", count: int = 3) -> None:
        super().__init__()
        self.outputs, self.form = outputs, form
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.block = nn.Linear(4, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, 1 if outputs == "numbers" else count)
        self.double()

    def forward(self, x: Tensor, size: Tensor | None = None, *, twice: bool = False) -> Any:
        x = self.stem(x).tanh()
        if size is not None:
            x = x * size[:, None, None]
        y = self.head(self.block(x.cumsum(1)).tanh().cumsum(1))
        y = 2 * y if twice else y
        if self.outputs != "tokens":
            y = y.mean(1)
        if self.outputs == "numbers":
            y = y.squeeze(1)
        forms = {
            "tensor": y, "dict": {"logits": y, "loss": None}, "mapping": UserDict(logits=y),
            "object": Answer(y, x), "tuple": (y, x), "hidden": {"last_hidden_state": y},
        }  # fmt: skip
        return forms[self.form]


X = randn(3, 4, 4)


def equal(one: Any, other: Any) -> None:
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        assert torch.equal(ours.a, theirs.a)
        assert torch.equal(ours.g, theirs.g)


# --- inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        (X, randn(3, seed=2)),
        [X, randn(3, seed=2)],
        {"x": X, "size": randn(3, seed=2), "twice": False},
        UserDict(size=randn(3, seed=2), x=X),
        (X.numpy(), randn(3, seed=2).numpy()),
        {"x": X.numpy(), "size": randn(3, seed=2)},
    ],
    ids=["tuple", "list", "dict", "mapping", "arrays", "an array and a tensor"],
)
def test_inputs_are_what_the_network_takes(inputs):
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Mixed()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x, randn(3, seed=2))

    found = kronecker_factors(Mixed(), inputs)
    expected = kronecker_factors(Sized(), X)
    for ours, right in zip(found.layers, expected.layers, strict=True):
        assert f"network.{ours.name}" == right.name
        assert torch.equal(ours.a, right.a)
        assert torch.equal(ours.g, right.g)
    fim_spectra(Mixed(), inputs, quantiles=8)


def test_what_is_no_tensor_is_handed_on():
    found = kronecker_factors(Mixed(), {"x": X, "twice": True}, loss="mse", fisher="exact")
    plain = kronecker_factors(Mixed(), X, loss="mse", fisher="exact")
    torch.testing.assert_close(found.layers[-1].a, plain.layers[-1].a)
    torch.testing.assert_close(found.layers[0].g, 4 * plain.layers[0].g)


def test_arrays_get_the_networks_dtype_where_they_are_floating():
    network = Mixed().float()
    found = kronecker_factors(network, X.numpy())
    equal(found, kronecker_factors(network, X.float()))

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Mixed().float()

        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            assert which.dtype == torch.int64
            return self.network(x[:, which[0]])

    which = np.tile(np.arange(4), (3, 1))
    found = kronecker_factors(Chosen(), (X.numpy(), which))
    assert len(found.layers) == 3


def test_inputs_are_not_changed_in_place():
    class Adding(Mixed):
        def forward(self, x: Tensor, size: Tensor) -> Tensor:
            size += 1
            return super().forward(x.mul_(2), size)

    inputs = {"x": X.clone(), "size": randn(3)}
    fim_spectra(Adding(), inputs, quantiles=8)
    assert torch.equal(inputs["x"], X)
    assert torch.equal(inputs["size"], randn(3))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("text", "dict or tuple of them as inputs, got str"),
        ({"twice": True}, "batch of inputs, got no tensor"),
        ((), "batch of inputs, got no tensor"),
        ((torch.tensor(3.0), X), r"batch of inputs, got shape \(\)"),
        ({"x": X, "size": randn(3).float().to("meta")}, "on the meta device"),
        ({"x": X.float()}, "float64 on cpu, got torch.float32 on cpu"),
        (np.array(["a", "b"]), "an array of numbers, got"),
    ],
)
def test_inputs_that_are_none(inputs, says):
    for one in (fim_spectra, kronecker_factors):
        with pytest.raises(FeatureError, match=says):
            one(Mixed(), inputs)


# --- outputs and losses ---------------------------------------------------------------------

TARGETS = {
    ("cross_entropy", "tokens"): randint(3, 3, 4),
    ("cross_entropy", "classes"): randint(3, 3),
    ("mse", "tokens"): randn(3, 4, 3, seed=5),
    ("mse", "classes"): randn(3, 3, seed=5),
    ("mse", "numbers"): randn(3, seed=5),
    ("binary_cross_entropy", "tokens"): randint(2, 3, 4, 3),
    ("binary_cross_entropy", "classes"): randint(2, 3, 3).double(),
    ("binary_cross_entropy", "numbers"): randint(2, 3),
}


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(("loss", "outputs"), TARGETS)
def test_factors_are_those_of_loops(loss, outputs, fisher):
    network, targets = Mixed(outputs), TARGETS[loss, outputs]
    found = kronecker_factors(network, X, targets, loss=loss, fisher=fisher)
    for ours in found.layers:
        layer = network.get_submodule(ours.name)
        a, g = fisher_loops.factors(network, layer, (X,), targets, loss=loss, fisher=fisher)
        torch.testing.assert_close(ours.a[0], a, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(ours.g[0], g, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_tokens_without_a_target_have_no_loss(fisher):
    network, targets = Mixed(), randint(3, 3, 4)
    targets[0, 1:] = targets[2, 0] = targets[2, 3] = -100
    options = {"loss": "cross_entropy", "fisher": fisher}
    found = kronecker_factors(network, X, targets.numpy(), **options)
    for ours in found.layers:
        layer = network.get_submodule(ours.name)
        a, g = fisher_loops.factors(network, layer, (X,), targets, **options)
        torch.testing.assert_close(ours.a[0], a, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(ours.g[0], g, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    ("loss", "outputs", "masked"),
    [
        ("cross_entropy", "tokens", False),
        ("cross_entropy", "tokens", True),
        ("binary_cross_entropy", "classes", False),
        ("binary_cross_entropy", "numbers", False),
    ],
)
def test_drawn_targets_converge_to_all_of_them(loss, outputs, masked, sharing):
    network = Mixed(outputs)
    targets = randint(3, 3, 4).masked_fill(randint(2, 3, 4) == 0, -100) if masked else None
    options = {"loss": loss, "weight_sharing": sharing}
    exact = kronecker_factors(network, X, targets, fisher="exact", **options).layers
    # Targets of each image are drawn apart, so that one batch of copies has many draws.
    many, of_many = X.repeat(20, 1, 1), None if targets is None else targets.repeat(20, 1)
    draws = [kronecker_factors(network, many, of_many, seed=s, **options).layers for s in range(20)]
    for place, right in enumerate(exact):
        seen = torch.stack([draw[place].g for draw in draws])
        error = seen.std(0) / len(seen) ** 0.5
        assert bool(((seen.mean(0) - right.g).abs() < 5 * error + 1e-12).all())
        assert float((seen.mean(0) - right.g).norm() / right.g.norm()) < 0.2


@pytest.mark.parametrize("form", ["dict", "mapping", "object"])
def test_outputs_may_be_in_something_with_logits(form):
    equal(kronecker_factors(Mixed(form=form), X), kronecker_factors(Mixed(), X))
    fim_spectra(Mixed("classes", form), X, quantiles=8)


def test_one_token_is_one_example():
    one = kronecker_factors(Mixed(), X[:, :1], fisher="exact")
    torch.testing.assert_close(
        one.layers[0].g,
        kronecker_factors(Mixed("classes"), X[:, :1], fisher="exact").layers[0].g,
    )


def test_one_logit_is_the_difference_of_two():
    """A Bernoulli distribution is a categorical one of two classes, of which one has logit 0."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Mixed("numbers")

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x)
            return torch.stack([torch.zeros_like(y), y], dim=1)

    for fisher, targets in (("exact", None), ("empirical", randint(2, 3))):
        options = {"fisher": fisher}
        one = kronecker_factors(
            Mixed("numbers"), X, targets, loss="binary_cross_entropy", **options
        )
        two = kronecker_factors(Two(), X, targets, loss="cross_entropy", **options)
        for ours, right in zip(one.layers, two.layers, strict=True):
            torch.testing.assert_close(ours.g, right.g, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss"),
    [
        ("classes", randint(3, 3), "cross_entropy"),
        ("classes", None, "cross_entropy"),
        ("tokens", randint(3, 3, 4), "cross_entropy"),
        ("classes", randn(3, 3), "mse"),
        ("tokens", randn(3, 4, 3), "mse"),
        ("numbers", randn(3), "mse"),
    ],
)
def test_the_loss_follows_from_plain_targets(outputs, targets, loss):
    for fisher in ("exact", *(["empirical"] if targets is not None else [])):
        found = kronecker_factors(Mixed(outputs), X, targets, fisher=fisher)
        equal(found, kronecker_factors(Mixed(outputs), X, targets, fisher=fisher, loss=loss))


CHOICES = "'cross_entropy'.*'binary_cross_entropy'.*'mse'"


@pytest.mark.parametrize(
    ("outputs", "targets", "options", "says"),
    [
        ("numbers", None, {}, "softmax of one output.*'mse'.*'binary_cross_entropy'"),
        ("numbers", randint(2, 3), {}, f"int64 and shape .3, 1..*{CHOICES}"),
        ("classes", randint(2, 3, 3), {}, CHOICES),
        ("classes", randint(2, 3, 3).bool(), {}, f"torch.bool.*{CHOICES}"),
        ("classes", randn(3), {}, CHOICES),
        ("tokens", randint(3, 3), {}, r"a target for each token, shape \(3, 4\), got \(3,\)"),
        ("tokens", torch.full((3, 4), -100), {}, "at least one token with a loss"),
        ("tokens", None, {"fisher": "empirical"}, "labels for the empirical Fisher.*None"),
        ("classes", randn(3, 3), {"fisher": "empirical", "loss": "binary_cross_entropy"},
         "from 0 to 1, got values from -"),
        ("classes", randint(2, 3), {"fisher": "empirical", "loss": "binary_cross_entropy"},
         r"targets of shape \(3, 3\)"),
    ],
)  # fmt: skip
def test_targets_and_losses_that_do_not_fit(outputs, targets, options, says):
    with pytest.raises(FeatureError, match=says):
        kronecker_factors(Mixed(outputs), X, targets, **options)


@pytest.mark.parametrize(
    ("form", "says"),
    [("tuple", "got tuple; wrap"), ("hidden", "got dict of last_hidden_state; wrap the network")],
)
def test_outputs_without_logits(form, says):
    for one in (fim_spectra, kronecker_factors):
        with pytest.raises(FeatureError, match=says):
            one(Mixed(form=form), X)


def test_the_examples_run():
    for module in (spectra, compute):
        done = doctest.testmod(module)
        assert (done.attempted > 3, done.failed) == (True, 0)


# --- the feature table ----------------------------------------------------------------------


class Reader(nn.Module):
    """Sums of vectors of tokens, scaled."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.layers = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(self.table(tokens).sum(1) * scale[:, None])}


TOKENS, SCALE = randint(7, 6, 5), randn(6)


def features(space: Space, inputs: Any, **options: Any) -> Any:
    spec = FeaturesSpec(quantiles=8, subset=3)
    return compute_features(space, network=Reader, inputs=inputs, spec=spec, **options)


def test_features_of_a_network_that_reads_tokens(tiny):
    inputs = {"tokens": TOKENS, "scale": SCALE}
    table = features(tiny, inputs)
    index = tiny.catalogue.index("tanh(x)")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Reader(Activation("tanh(x)"))
    expected = fim_spectra(network, {"tokens": TOKENS, "scale": SCALE.float()}, quantiles=8)
    np.testing.assert_allclose(
        table.blocks["fim"].values[index], expected.quantiles.ravel(), rtol=1e-6
    )
    for same in ((TOKENS, SCALE.float()), {"tokens": TOKENS.numpy(), "scale": SCALE.numpy()}):
        np.testing.assert_array_equal(
            features(tiny, same).blocks["fim"].values, table.blocks["fim"].values
        )


def test_batches_that_differ_have_spectra_of_their_own():
    batches = [
        (X, None), (X, randint(3, 3)), ((X,), randn(3)), ((X, randn(3)), None),
        ((X, randn(3)), randint(3, 3)), ({"x": X}, None), ({"y": X}, None),
        ({"x": X, "twice": True}, None), ({"x": X, "twice": False}, None), (X.long(), None),
    ]  # fmt: skip
    spec = FeaturesSpec()
    digests = [FisherJob(Reader, one, other, spec).batch_digest() for one, other in batches]
    assert len(set(digests)) == len(batches)


def test_the_loss_that_targets_have_is_that_of_its_name(tiny, tmp_path):
    """Spectra that were kept with a loss by name are found without it."""
    inputs = {"tokens": TOKENS, "scale": SCALE}
    key = {"network": "reader"}
    with_name = compute_features(
        tiny, network=Reader, inputs=inputs, targets=randint(3, 6), key=key, cache=tmp_path,
        spec=FeaturesSpec(quantiles=8, subset=3, loss="cross_entropy"),
    )  # fmt: skip
    without = features(tiny, inputs, targets=randint(3, 6), key=key, cache=tmp_path)
    assert without.provenance == with_name.provenance
    assert without.hash == with_name.hash
    other = features(tiny, inputs, targets=randn(6, 3), key=key, cache=tmp_path)
    assert other.provenance["options"]["loss"] == "mse"
    assert other.hash != without.hash

"""Layers of networks that read tokens: their Fisher blocks against gradients by parameters."""

from __future__ import annotations

import math
from typing import Any

import fisher_loops
import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import Tensor, nn

from bo_act.errors import FeatureError
from bo_act.fisher.kfac import LayerFactors
from bo_act.fisher.layer_spectrum import factor_values, spectrum
from bo_act.fisher.spectra import fim_spectra

V, T, B, D = 7, 5, 4, 6


class Conv1D(nn.Module):
    """A linear layer with a weight (in, out), as in Hugging Face's GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class OwnRMSNorm(nn.Module):
    """As in Hugging Face's Llama."""

    def __init__(self, width: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(width))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        square = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(square + self.variance_epsilon))


class OneMoreRMSNorm(OwnRMSNorm):
    """As in Hugging Face's Gemma: the scale is one more than the parameter."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * (1 + self.weight) / self.weight


class Transformer(nn.Module):
    """Tokens, positions, one block of causal attention, and a head that may be tied."""

    def __init__(
        self, *, tied: bool = False, padding: int | None = None, norm: Any = OwnRMSNorm,
        table: Any = nn.Embedding, positions: str = "(1, T)",
    ) -> None:  # fmt: skip
        super().__init__()
        self.positions = positions
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = table(V, D, padding_idx=padding)
            self.places = nn.Embedding(T, D)
            self.norm = norm(D)
            self.qkv, self.out = Conv1D(3 * D, D), nn.Linear(D, D)
            self.head = nn.Linear(D, V, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        if self.positions == "(1, T)":
            places = places[None]
        elif self.positions == "(B, T)":
            places = places.expand(len(tokens), -1)
        x = self.table(tokens) + self.places(places)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(x.tanh())


TOKENS = torch.randint(V - 1, (B, T), generator=torch.Generator().manual_seed(0))  # never the last
TARGETS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
TARGETS[0, 2:] = -100


def found(network: nn.Module, *arguments: Any, **options: Any) -> dict[str, LayerFactors]:
    factors = kronecker_factors(network, *arguments, **options)
    return {layer.name: layer for layer in factors.layers}


def table_factors(
    network: nn.Module, layer: nn.Embedding, tokens: Tensor, fisher: str, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both factors of an embedding, the first one dense, over positions that are no padding."""
    positions, batch = fisher_loops.looped(
        network, layer, (tokens,), targets, loss="cross_entropy", fisher=fisher
    )
    count, width = layer.weight.shape
    a, g, used = torch.zeros(count, count).double(), torch.zeros(width, width).double(), 0
    for token, ds in positions:
        if int(token) != layer.padding_idx:
            a[token, token] += 1
            g += ds.T @ ds / batch
            used += 1
    return a / used, g


# --- embeddings -----------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize(("fisher", "targets"), [("exact", None), ("exact", TARGETS),
                                                 ("empirical", TARGETS)])  # fmt: skip
def test_tables_by_loops(fisher, targets, padding, sharing):
    network = Transformer(padding=padding)
    layers = found(network, TOKENS, targets, fisher=fisher, weight_sharing=sharing)
    assert [*layers] == ["table", "places", "norm", "qkv", "out", "head"]
    for name in ("table", "places"):
        layer = network.get_submodule(name)
        a, g = table_factors(network, layer, TOKENS, fisher, targets)
        ours = layers[name]
        assert ours.kind == "embedding"
        assert ours.weights == layer.weight.numel()
        assert ours.a.shape == (1, len(layer.weight))  # the diagonal alone
        torch.testing.assert_close(ours.a[0].diag(), a)
        torch.testing.assert_close(ours.g[0], g, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["table", "places", "qkv", "out"])
def test_one_image_of_one_token_is_exact(name):
    """The block of weights by their gradients, in the order of the weight."""
    network, tokens = Transformer(), TOKENS[:1, :1]
    layer = network.get_submodule(name)
    log_p = network(tokens)[0, 0].log_softmax(0)
    size = layer.weight.numel()
    expected = torch.zeros(size, size).double()
    for value in log_p:
        (d,) = torch.autograd.grad(value, layer.weight, retain_graph=True)
        expected += value.exp().item() * torch.outer(d.flatten(), d.flatten())
    ours = found(network, tokens, fisher="exact")[name]
    if ours.kind == "embedding":
        dense = torch.kron(ours.a[0].diag(), ours.g[0])
    elif name == "qkv":  # a weight (in, out)
        dense = torch.kron(ours.a[0, :-1, :-1], ours.g[0])
    else:
        dense = torch.kron(ours.g[0], ours.a[0, :-1, :-1])
    torch.testing.assert_close(dense, expected, rtol=1e-11, atol=1e-14)


def test_the_spectrum_of_a_table_is_that_of_the_dense_block():
    ours = found(Transformer(), TOKENS, fisher="exact")["table"]
    values_a, values_g = factor_values(ours)
    dense = torch.linalg.eigvalsh(torch.kron(ours.a[0].diag(), ours.g[0]))
    products = np.sort((values_a[0][:, None] * values_g[0][None]).ravel())
    np.testing.assert_allclose(products, dense.numpy(), rtol=1e-9, atol=1e-14)
    absent = V - len(TOKENS.unique())
    assert absent > 0
    assert spectrum(ours).null_mass == pytest.approx(absent / V)
    assert len(spectrum(ours).logs) == V * D


def test_a_large_table_has_no_dense_factor():
    """A dense one would have 80 GB."""
    network = nn.Sequential(nn.Embedding(100_000, 4), nn.Flatten(), nn.Linear(12, 3))
    tokens = torch.arange(90).reshape(30, 3)
    result = fim_spectra(network, tokens)
    assert result.layers == ("0", "2")
    assert result.null_mass[0] >= 1 - 90 / 100_000 - 1e-12
    assert np.isfinite(result.quantiles).all()


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_a_table_that_is_called_several_times(targets):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Transformer()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.network(tokens) + self.network(tokens.flip(1)).sin()

    network = Twice()
    ours = found(network, TOKENS, targets, fisher="exact")["network.table"]
    a, g = table_factors(network, network.network.table, TOKENS, "exact", targets)
    torch.testing.assert_close(ours.a[0].diag(), a)
    torch.testing.assert_close(ours.g[0], g, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("frozen", [False, True])
def test_numbers_of_positions_have_gradients_by_image(frozen):
    """As if each image had been given its own, which one gradient for all would not be."""
    own = found(Transformer(positions="(B, T)"), TOKENS, TARGETS, fisher="empirical")
    network = Transformer().requires_grad_(not frozen)
    once = found(network, TOKENS, TARGETS, fisher="empirical")
    for name, right in own.items():
        torch.testing.assert_close(once[name].a, right.a)
        torch.testing.assert_close(once[name].g, right.g)


@pytest.mark.parametrize("batch", [1, 3, T])
def test_numbers_of_positions_without_images(batch):
    """(T,) indices: nothing tells an image's gradient, but for a batch of one."""
    tokens = torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(0))
    network = Transformer(positions="(T,)")
    factors = kronecker_factors(network, tokens, fisher="exact")
    assert factors.uncovered == (() if batch == 1 else ("places",))
    if batch == 1:
        ours = found(network, tokens, fisher="exact")["places"]
        expected = found(Transformer(), tokens, fisher="exact")["places"]
        torch.testing.assert_close(ours.g, expected.g)


class Same(nn.Embedding):
    """A table by another name."""


class Scaled(nn.Embedding):
    """Multiplies its vectors by a number, as those of Gemma."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * math.sqrt(D)


class Shifted(nn.Embedding):
    """Looks up the next token, as positions of OPT."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward((tokens + 1) % V)


@pytest.mark.parametrize("table", [Same, Scaled, Shifted])
def test_a_table_of_another_class_is_covered_if_it_is_one(table):
    factors = kronecker_factors(Transformer(table=table), TOKENS)
    assert factors.uncovered == (() if table is Same else ("table",))


def test_tied_weights_have_a_block_each():
    """Each the block of the weight if the other one were another parameter."""
    tied = found(Transformer(tied=True), TOKENS, fisher="exact")
    untied = Transformer()
    with torch.no_grad():
        untied.head.weight.copy_(untied.table.weight)
    apart = found(untied, TOKENS, fisher="exact")
    assert [*tied] == [*apart]
    for name, right in apart.items():
        torch.testing.assert_close(tied[name].a, right.a)
        torch.testing.assert_close(tied[name].g, right.g)


def test_tables_that_share_their_weight_are_one():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Embedding(V, D), nn.Embedding(V, D)
            self.second.weight, self.head = self.first.weight, nn.Linear(D, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head((self.first(tokens) - self.second(tokens.flip(1)).sin()).sum(1))

    factors = kronecker_factors(Two(), TOKENS)
    assert [layer.name for layer in factors.layers] == ["first", "head"]
    assert factors.uncovered == ()


def test_a_token_outside_the_table_is_an_error_of_the_networks():
    with pytest.raises(IndexError):
        kronecker_factors(Transformer(), TOKENS + V)


# --- linear layers with a turned weight -----------------------------------------------------


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_turned_linear_layers_by_loops(fisher):
    network = Transformer()
    ours = found(network, TOKENS, TARGETS, fisher=fisher)
    for name in ("qkv", "out"):
        layer = network.get_submodule(name)
        options = {"loss": "cross_entropy", "fisher": fisher}
        a, g = fisher_loops.factors(network, layer, (TOKENS,), TARGETS, **options)
        torch.testing.assert_close(ours[name].a[0], a)
        torch.testing.assert_close(ours[name].g[0], g, rtol=1e-11, atol=1e-15)
        assert ours[name].biased


def test_a_convolution_named_like_one_is_a_convolution_of_its_own():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv1d(x, self.weight)

    network = nn.Sequential(Conv1D(), nn.Flatten(), nn.Linear(8, 3))
    assert kronecker_factors(network, torch.randn(5, 3, 4)).uncovered == ("0",)


# --- RMSNorm by other names -----------------------------------------------------------------


class RmsNorm(OwnRMSNorm):
    """As in timm: with eps by another name."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.eps = self.variance_epsilon
        del self.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (len(self.weight),), self.weight, self.eps)


class T5LayerNorm(OwnRMSNorm):
    """As in Hugging Face's T5: by the name of another one."""


class TwiceRMSNorm(OwnRMSNorm):
    """As in no library: the scale is twice the parameter."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


def torchs(width: int) -> nn.Module:
    norm = nn.RMSNorm(width, eps=1e-2)
    norm.load_state_dict(OwnRMSNorm(width).state_dict())
    return norm


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("norm", [OwnRMSNorm, OneMoreRMSNorm, RmsNorm, T5LayerNorm, torchs])
def test_scales_of_rms_norms_are_exact(norm, fisher):
    """The mean square of an image's gradient by each of them, over all targets of each token."""
    network, targets = Transformer(norm=norm), TARGETS.clamp_min(0)
    (ours,) = (x for x in kronecker_factors(network, TOKENS, targets, fisher=fisher).layers
               if x.kind == "norm")  # fmt: skip
    expected = torch.zeros(D).double()
    for tokens, wanted in zip(TOKENS, targets, strict=True):
        log_p = network(tokens[None])[0].log_softmax(1)
        drawn = [(1.0, log_p[torch.arange(T), wanted].sum())]
        if fisher == "exact":
            drawn = [(value.exp().item(), value) for value in log_p.flatten()]
        for share, value in drawn:
            (d,) = torch.autograd.grad(value, network.norm.weight, retain_graph=True)
            expected += share * d.square() / B
    torch.testing.assert_close(ours.a[:, 0, 0], expected, rtol=1e-11, atol=1e-15)
    assert ours.weights == D


def test_a_norm_that_scales_otherwise_is_not_covered():
    factors = kronecker_factors(Transformer(norm=TwiceRMSNorm), TOKENS)
    assert factors.uncovered == ("norm",)


# --- whole networks -------------------------------------------------------------------------


def test_a_transformer_is_covered():
    network = Transformer().float()
    result = fim_spectra(network, TOKENS, TARGETS)
    assert result.uncovered == ()
    assert result.weights.sum() == sum(one.numel() for one in network.parameters())
    assert np.isfinite(result.quantiles).all()


def test_an_encoder_of_torch_reads_tokens():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(V, D, padding_idx=0)
            self.layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)
            self.head = nn.Linear(D, 1)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.layer(self.table(tokens), src_key_padding_mask=tokens == 0)
            return self.head(x[:, -1]).squeeze(1)

    tokens = TOKENS.clone()
    tokens[:, -1] = 1
    result = fim_spectra(Encoder(), tokens, loss="binary_cross_entropy")
    assert result.uncovered == ()
    assert result.layers[0] == "table"


def test_nothing_covered_names_what_is():
    network = nn.Sequential(nn.EmbeddingBag(V, 3))
    with pytest.raises(FeatureError, match=r"an embedding or .*got layers of the types Embedding"):
        kronecker_factors(network, TOKENS)

"""Input factors of convolutions: patches and correlations against torch's own unfold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bo_act.fisher.layer_spectrum import spectrum
from bo_act.fisher.layers import weights
from bo_act.fisher.layers.centred import centred_products
from bo_act.fisher.layers.correlation import correlated_products, worthwhile
from bo_act.fisher.layers.patches import Convolution, gram, patch_means, patch_products
from bo_act.fisher.rounding import outweighs_rounding

# The layers of the networks that are shipped, and others: channels, size, kernel, stride, padding.
SHAPES = [
    (96, 32, 3, 1, 1),
    (96, 32, 3, 2, 1),
    (16, 9, 3, 1, 0),
    (16, 12, 5, 1, 2),
    (8, 14, 3, 3, 1),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unfolded(x: Tensor, layer: nn.Conv2d, one: float | None) -> Tensor:
    """All patches (k, p, positions), by torch's unfold."""
    x = nn.functional.pad(x, [p for pair in reversed(Convolution.of(layer).padding) for p in pair],
                          mode=Convolution.of(layer).mode)  # fmt: skip
    rows = []
    for group in x.chunk(layer.groups, dim=1):
        patches = nn.functional.unfold(
            group, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
        )
        patches = patches.transpose(0, 1).flatten(1)
        if one is not None:
            patches = torch.cat([patches, torch.full_like(patches[:1], one)])
        rows.append(patches)
    return torch.stack(rows)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, dilation, stride = pair(1, 4), pair(1, 2), pair(1, 3)
    padding = draw(st.one_of(st.just("same"), st.just(pair(0, 2))))
    if padding == "same":
        stride = (1, 1)
    needed = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [draw(st.integers(n, n + 5)) for n in needed]
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
    layer = nn.Conv2d(
        groups * channels, groups, kernel, stride=stride, padding=padding, dilation=dilation,
        groups=groups, padding_mode=mode,
    )  # fmt: skip
    return layer, randn(2, groups * channels, *sizes, seed=draw(st.integers(0, 999)))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=150)
@given(case=convolutions(), one=st.sampled_from([None, 1.0, 0.25]))
def test_both_ways_are_the_product_of_all_patches(case, one):
    layer, x = case
    rows = unfolded(x, layer, one)
    expected = rows @ rows.mT
    convolution = Convolution.of(layer)
    for way in (correlated_products, patch_products):
        torch.testing.assert_close(way(x, convolution, one), expected, rtol=1e-11, atol=1e-12)
    means = rows.unflatten(-1, (2, -1)).mean(-1)
    torch.testing.assert_close(patch_means(x, convolution, one), means, rtol=1e-12, atol=1e-14)
    # The patches are those that the layer itself multiplies by its weight.
    y = layer.double()(x) - layer.bias.view(1, -1, 1, 1)
    weight = layer.weight.view(layer.groups, -1, layer.weight[0].numel())
    by_patch = (weight @ rows[:, : weight.shape[2]]).flatten(0, 1)
    torch.testing.assert_close(by_patch, y.transpose(0, 1).flatten(1))
    assert convolution.outputs(tuple(x.shape[2:])) == tuple(y.shape[2:])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(case=convolutions(), biased=st.booleans())
def test_a_mean_that_is_put_back_changes_nothing(case, biased):
    layer, x = case
    if layer.groups > 1:
        return
    x, convolution = x + 7, Convolution.of(layer)
    if convolution.mode != "constant":
        x, convolution = convolution.padded(x)
    one = 1.0 if biased else None
    expected = patch_products(x, convolution, one)
    found, multiplied = centred_products(
        x, convolution, biased, lambda x: patch_products(x, convolution, one)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))
    assert (multiplied >= 0).all()


@pytest.mark.parametrize("shape", [(7, 5), (50, 97), (40, 130), (2, 30, 128), (1, 3, 200)])
def test_products_with_oneself_in_strips(shape):
    rows = randn(*shape)
    torch.testing.assert_close(gram(rows), rows.mT @ rows)
    turned = rows.mT.contiguous().mT
    torch.testing.assert_close(gram(turned), rows.mT @ rows)


def test_the_mean_of_a_linear_layers_inputs_is_put_back():
    x = randn(50, 6) + 3
    found, multiplied = centred_products(x, None, True, lambda x: weights.products(x, None, 1.0))
    torch.testing.assert_close(found, weights.products(x, None, 1.0))
    assert (multiplied[:-1] < 0.2 * found[0].diagonal()[:-1]).all()


@pytest.mark.parametrize(("offset", "bias"), [(0.0, False), (0.0, True), (3000.0, False)])
def test_large_factors_lose_nothing_in_float32(offset, bias, monkeypatch):
    """With the mean taken out float32 is enough here; without, it would be seen not to be."""
    layer = nn.Conv2d(16, 4, 3, padding=1, bias=bias)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(4 * 64, 3))
    images = (randn(64, 16, 8, 8) + offset).float()
    exact = kronecker_factors(network, images, None).layers[0]
    monkeypatch.setattr(weights, "_CHEAP", 0.0)
    accepted = []

    def told(*given):
        accepted.append(outweighs_rounding(*given))
        return accepted[-1]

    monkeypatch.setattr(weights, "outweighs_rounding", told)
    rough = kronecker_factors(network, images, None).layers[0]
    assert accepted[0]
    assert not torch.equal(rough.a, exact.a)
    values = torch.linalg.eigvalsh(exact.a)
    torch.testing.assert_close(torch.linalg.eigvalsh(rough.a), values, rtol=1e-3, atol=0)
    if offset:
        monkeypatch.setattr(
            weights, "centred_products", lambda x, c, b, products: in_full(products(x))
        )
        accepted.clear()
        again = kronecker_factors(network, images, None).layers[0]
        assert not accepted[0]
        assert torch.equal(again.a, exact.a)


def in_full(sums):
    return sums, sums[0].diagonal().clone()


@given(st.integers(2, 40), st.floats(-9, 0), st.floats(0, 6), st.integers(0, 1), st.integers(0, 99))
def test_what_outweighs_rounding_is_hardly_moved_by_it(n, least, spread, dead, seed):
    """Whatever the scales of the rows: errors that are eps of each entry move no eigenvalue far."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    middle = (basis * torch.logspace(least, 0, n, dtype=torch.float64)) @ basis.T
    rows = 10 ** (spread * torch.rand(n, dtype=torch.float64, generator=generator))
    rows[:dead] = 0.0
    sums = rows[:, None] * middle * rows
    d = sums.diagonal().sqrt()
    signs = torch.randn(n, n, dtype=torch.float64, generator=generator).sign().triu()
    error = torch.finfo(torch.float32).eps * d[:, None] * d * (signs + signs.triu(1).T)
    if outweighs_rounding(sums, sums.diagonal().clone()):
        alive = rows > 0
        exact = torch.linalg.eigvalsh(scaled(sums[alive][:, alive], d[alive]))
        moved = torch.linalg.eigvalsh(scaled((sums + error)[alive][:, alive], d[alive]))
        assert exact.min() > 0
        assert ((moved - exact).abs() <= 0.01 * exact).all()
    else:
        assert least < -2  # a well-conditioned one is not summed again


def scaled(sums, d):
    """Of the quadratic form in units of each row, as no solver is right to the last eigenvalue."""
    return sums / (d[:, None] * d)


@pytest.mark.parametrize("chunk", [1, 3000])
@pytest.mark.parametrize("case", [(3, 7, 2, 1, 1), (2, 8, 3, 2, 1)])
def test_little_memory_changes_nothing(case, chunk, monkeypatch):
    channels, size, kernel, stride, padding = case
    layer = nn.Conv2d(channels, 4, kernel, stride=stride, padding=padding)
    x, convolution = randn(5, channels, size, size), Convolution.of(layer)
    whole = correlated_products(x, convolution, 1.0)
    monkeypatch.setattr("bo_act.fisher.layers.correlation._CHUNK", chunk)
    monkeypatch.setattr("bo_act.fisher.layers.patches._CHUNK", chunk)
    torch.testing.assert_close(correlated_products(x, convolution, 1.0), whole)
    torch.testing.assert_close(patch_products(x, convolution, 1.0), whole)


@pytest.mark.parametrize("case", SHAPES)
def test_float32_is_as_good_as_a_product_of_patches(case):
    channels, size, kernel, stride, padding = case
    layer = nn.Conv2d(channels, 4, kernel, stride=stride, padding=padding)
    x, convolution = randn(4, channels, size, size).relu(), Convolution.of(layer)
    expected = correlated_products(x, convolution, 1.0)
    got = correlated_products(x.float(), convolution, 1.0)
    largest = torch.linalg.eigvalsh(expected).max()
    error = torch.linalg.matrix_norm(got - expected, 2).max() / largest
    # The tolerance below which eigenvalues are taken for null.
    assert error < torch.finfo(torch.float32).eps * math.sqrt(expected.shape[-1])


def test_which_way_is_taken():
    def choice(channels: int, size: int, **options) -> bool:
        layer = nn.Conv2d(channels, channels, **options)
        return worthwhile(torch.empty(8, channels, size, size), Convolution.of(layer))

    for channels, size, kernel, stride, padding in SHAPES[:3]:
        assert choice(channels, size, kernel_size=kernel, stride=stride, padding=padding)
    assert not choice(3, 32, kernel_size=3, padding=1)  # few channels
    assert not choice(16, 32, kernel_size=3, padding=1, groups=16)  # depthwise
    assert not choice(16, 32, kernel_size=4, stride=4)  # patches that do not overlap
    assert not choice(16, 3, kernel_size=3)  # one position


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_network_has_the_same_factors_either_way(memory, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.Tanh(), nn.Conv2d(16, 8, 3, groups=1, bias=False), nn.Flatten(), nn.Linear(8 * 9, 3),
    ).double().to(memory_format=memory)  # fmt: skip
    images = randn(6, 8, 10, 10).to(memory_format=memory)
    by_correlation = kronecker_factors(network, images, None).layers
    called = []
    monkeypatch.setattr(weights, "worthwhile", lambda *_: called.append(1) or False)
    by_patches = kronecker_factors(network, images, None).layers
    assert len(called) == 3
    for one, other in zip(by_correlation, by_patches, strict=True):
        torch.testing.assert_close(one.a, other.a, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(one.g, other.g)


@pytest.mark.parametrize("classes", [3, 10])
def test_gradients_summed_in_float32_keep_their_null_space(classes, monkeypatch):
    """Those of a softmax add up to zero, which float32 alone would not show."""
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Tanh(), nn.Conv2d(12, classes, 1), Mean())
    images = randn(64, 3, 12, 12).float()
    exact = [spectrum(layer) for layer in kronecker_factors(network, images, None).layers]
    monkeypatch.setattr(weights, "_CHEAP", 0.0)
    rough = [spectrum(layer) for layer in kronecker_factors(network, images, None).layers]
    for one, other in zip(exact, rough, strict=True):
        assert one.null_mass == pytest.approx(other.null_mass, abs=1e-3)
        np.testing.assert_allclose(one.logs, other.logs, atol=0.05)
    assert rough[-1].null_mass >= 1 / classes - 1e-3


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

"""Eigenvalues that are checked, what networks share, and vectors in the form of Act-Bench."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bo_act.errors import FeatureError
from bo_act.features import act_bench as act_bench_module
from bo_act.features.act_bench import act_bench_vector, edges
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.eigenvalues import eigenvalues
from bo_act.fisher.kfac import LayerFactors
from bo_act.fisher.layer_spectrum import Spectrum, faster_device, spectra, spectrum
from bo_act.fisher.layers import weights
from bo_act.fisher.options import FisherOptions
from bo_act.fisher.spectra import fim_spectra, network_spectra
from bo_act.networks import load_network
from bo_act.specs import ModelSpec


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


# --- eigenvalues ----------------------------------------------------------------------------


@given(
    n=st.integers(1, 12), k=st.integers(1, 3), seed=st.integers(0, 99),
    size=st.sampled_from([1e-200, 1e-30, 1.0, 1e200]),
)  # fmt: skip
def test_eigenvalues_of_known_matrices(n, k, seed, size):
    bases = torch.linalg.qr(randn(k, n, n, seed=seed)).Q
    known = randn(k, n, seed=seed + 1).abs().sort().values * size
    found = eigenvalues(bases @ torch.diag_embed(known) @ bases.mT)
    torch.testing.assert_close(found / size, known / size, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros_like,
        lambda v: v + 1e-3 * v.max(),
        lambda v: v * 1.01,
        lambda v: v * torch.nan,
        lambda v: torch.linalg.cholesky(-torch.eye(2)),  # raises what eigvalsh does
    ],
)
def test_wrong_eigenvalues_are_computed_again(wrong, monkeypatch):
    """Wrong ones, and those that do not come."""
    real, calls = torch.linalg.eigvalsh, []

    def first_is_wrong(matrices: Tensor) -> Tensor:
        calls.append(matrices)
        return wrong(real(matrices)) if len(calls) == 1 else real(matrices)

    x = randn(200, 150)
    matrix = (x.T @ x)[None]
    expected = real(matrix)
    monkeypatch.setattr(torch.linalg, "eigvalsh", first_is_wrong)
    torch.testing.assert_close(eigenvalues(matrix), expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 2
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda m: wrong(real(m)))
    with pytest.raises(
        FeatureError, match="matrix of size 150 do not converge, or not to its trace"
    ):
        eigenvalues(matrix)
    layer = LayerFactors("conv", matrix, matrix, 150**2)
    with pytest.raises(FeatureError, match="at layer 'conv': those of a matrix of size 150"):
        spectrum(layer)


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-200, 1.0, 1e200])
def test_factors_of_any_size_have_a_null_mass(size):
    """The gradients behind a function that saturates are of the order of 1e-160."""
    g = torch.diag_embed(torch.tensor([[0.0, 1.0, 1.0, 2.0]], dtype=torch.float64) * size)
    layer = LayerFactors("one", torch.eye(3, dtype=torch.float64)[None], g, 12)
    found = spectrum(layer)
    assert found.null_mass == pytest.approx(0.25)
    assert np.isfinite(found.logs).all()


def test_products_in_float32_are_not_quite_symmetric():
    """The check must not take that for a wrong solver."""
    x = randn(1000, 200).float()
    product = (x.T @ x).double()[None]
    product[0, 0, 1:] *= 1 + 1e-6
    torch.testing.assert_close(
        eigenvalues(product), torch.linalg.eigvalsh(product), rtol=1e-4, atol=1e-4
    )


def test_the_only_device_is_the_fastest():
    layer = LayerFactors("layer", torch.eye(3)[None], torch.eye(2)[None], 6)
    assert faster_device([layer]).type == "cpu"


# --- several layers at a time ---------------------------------------------------------------


def with_threads(count: int, call: Callable[[], object]) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def factors(*sizes: int) -> list[LayerFactors]:
    both = [(randn(1, n, 2 * n), randn(1, 3, 5, seed=n)) for n in sizes]
    return [LayerFactors(str(len(a[0])), a @ a.mT, g @ g.mT, a.shape[1] * 3) for a, g in both]


def test_layers_side_by_side_are_as_one_after_the_other():
    layers = factors(5, 40, 2, 17, 33)
    alone = with_threads(1, lambda: spectra(layers))
    fresh: list[int] = []

    def several() -> list[Spectrum]:
        found = spectra(layers)
        assert torch.get_num_threads() == 3
        new = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        new.start()
        new.join()
        return found

    for _ in range(3):
        for one, other in zip(alone, with_threads(3, several), strict=True):
            np.testing.assert_array_equal(one.logs, other.logs)
            assert one.null_mass == other.null_mass
    assert fresh == [3, 3, 3]  # threads of others have what they would have had


def test_the_first_layer_that_fails_is_named():
    layers = factors(5, 6, 7)
    broken = [replace(layer, a=layer.a * np.nan) for layer in layers[1:]]
    with pytest.raises(FeatureError, match="at layer '6'"):
        with_threads(2, lambda: spectra([layers[0], *broken]))


# --- what networks share --------------------------------------------------------------------


def net(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 4, 3), activation(),
        nn.Flatten(), nn.Linear(4 * 9, 3),
    )  # fmt: skip


FUNCTIONS = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Tanh)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_shared_factors_change_nothing(sharing):
    images, shared = randn(5, 2, 9, 9), InputFactorCache()
    for function in FUNCTIONS:
        network = seeded(lambda f=function: net(f))
        alone = fim_spectra(network, images, None, weight_sharing=sharing)
        options = FisherOptions(weight_sharing=sharing)
        together = network_spectra(network, images, options=options, shared=shared)
        np.testing.assert_array_equal(together.quantiles, alone.quantiles)
        np.testing.assert_array_equal(together.null_mass, alone.null_mass)
    assert sorted(shared.spectra) == ["0", "1"]


def test_what_stands_before_the_activation_is_computed_once(monkeypatch):
    counts = []
    real = weights.patch_products
    monkeypatch.setattr(
        weights, "patch_products", lambda *a: counts.append(a[0].shape[1]) or real(*a)
    )
    monkeypatch.setattr(weights, "worthwhile", lambda *a: False)
    images, shared = randn(5, 2, 9, 9), InputFactorCache()
    for function in FUNCTIONS:
        kronecker_factors(seeded(lambda f=function: net(f)), images, None, shared=shared)
    assert counts == [2, 3, 8, 8, 8, 8]
    last = kronecker_factors(seeded(lambda: net(nn.GELU)), images, None, shared=shared)
    assert [layer.shared for layer in last.layers] == [True, True, False, False]


def test_other_images_are_not_taken_for_the_same():
    shared = InputFactorCache()
    network = seeded(lambda: net(nn.Tanh))
    for seed in (0, 1, 1):
        images = randn(5, 2, 9, 9, seed=seed)
        expected = kronecker_factors(network, images, None).layers
        got = kronecker_factors(network, images, None, shared=shared).layers
        assert all(torch.equal(a.a, b.a) for a, b in zip(got, expected, strict=True))
    assert not any(layer.shared for layer in got)


def test_little_memory_keeps_the_first_inputs_alone():
    images = randn(5, 2, 9, 9)
    shared = InputFactorCache(limit=images.numel() * 8)
    flags = []
    for function in FUNCTIONS:
        network = seeded(lambda f=function: net(f))
        found = kronecker_factors(network, images, None, shared=shared).layers
        flags.append([layer.shared for layer in found])
    assert flags == [[False] * 4] + [[True, False, False, False]] * 3


def test_a_network_is_checked_for_randomness_once(monkeypatch):
    network, images, calls = seeded(lambda: net(nn.Tanh)), randn(5, 2, 9, 9), []
    network.register_forward_hook(lambda *call: calls.append(1))
    shared = InputFactorCache()
    for expected in (3, 1, 1):
        calls.clear()
        network_spectra(network, images, options=FisherOptions(), shared=shared)
        assert len(calls) == expected


# --- Act-Bench ------------------------------------------------------------------------------


def test_the_layout_of_all_cnn_c():
    """13,683 numbers; the layers' weights are those of the released files."""
    builder = load_network(ModelSpec(name="all_cnn_c"))
    network = builder(nn.Tanh, in_channels=3, image_size=32, num_classes=10, seed=0)
    images = randn(2, 3, 32, 32).float()
    weights = [
        layer.weights
        for layer in kronecker_factors(network, images, None, statistics="running").layers
    ]
    assert weights == [2688, 83040, 83040, 166080, 331968, 331968, 331968, 37056, 1930]
    assert sum(max(len(edges(w)) - 1, 0) for w in weights) == 13_683


def small(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), activation(), nn.Conv2d(12, 12, 3), activation(),
        nn.Flatten(), nn.Linear(12 * 4, 10),
    )  # fmt: skip


def test_a_vector_from_the_dense_matrix():
    """Of a layer without null eigenvalues: the rounding errors of those are anyone's."""
    network, images, labels = seeded(small), randn(40, 1, 6, 6), torch.arange(40) % 10
    vector = act_bench_vector(network.train(), images, labels)
    assert network.training
    network.eval()
    seen = []
    handle = network[3].register_forward_hook(lambda *call: seen.extend([call[1][0], call[2]]))
    loss = nn.functional.cross_entropy(network(images), labels)
    handle.remove()
    (d,) = torch.autograd.grad(loss, seen[1:])
    x = nn.functional.unfold(seen[0].detach(), 3).transpose(1, 2).flatten(0, 1)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    d = d.flatten(2).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(torch.kron(x.T @ x / len(x), d.T @ d / 40)).numpy()
    assert len(values) == 109 * 12
    assert values[0] > 1e-12 * values[-1]
    bins = np.linspace(-100, 100, 13)
    expected = [np.mean(np.log(values) < high) for high in bins[1:]]
    np.testing.assert_allclose(vector[:12], expected, atol=1e-12)
    assert 0 < vector[4] < 1
    assert len(vector) == 12 + len(edges(49 * 10)) - 1


def test_a_layer_without_gradient_keeps_its_place():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.detach() + 1

    images, labels = randn(7, 1, 6, 6), torch.arange(7) % 10
    vector = act_bench_vector(seeded(lambda: small(Constant)), images, labels)
    assert len(vector) == len(act_bench_vector(seeded(small), images, labels))
    first = len(edges(12 * 109)) - 1
    assert (vector[:first] == 0).all()
    assert vector[-1] == 1


def test_small_layers_have_no_bins():
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    assert len(act_bench_vector(network, randn(6, 5), torch.arange(6) % 3)) == 0
    assert len(edges(199)) == 1


FINE = np.linspace(-100, 100, 20_001)


def sides() -> nn.Module:
    """With and without a bias, and the last layer too small for bins."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.Tanh(), nn.Conv2d(12, 8, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(72, 20), nn.Tanh(), nn.Linear(20, 16, bias=False), nn.Tanh(), nn.Linear(16, 5),
    )  # fmt: skip


def log_eigenvalues(network: nn.Module, images: Tensor, labels: Tensor) -> list[np.ndarray]:
    """Those of each layer by loops in numpy, in the dtypes of the released files' computation."""
    layers = [m for m in network if isinstance(m, nn.Conv2d | nn.Linear)]
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        m.register_forward_hook(lambda _, args, y: seen.append((args[0], y))) for m in layers
    ]
    loss = nn.functional.cross_entropy(network(images), labels)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(loss, [y for _, y in seen])
    found = []
    for layer, (x, _), d in zip(layers, seen, gradients, strict=True):
        rows, slopes = x.detach().numpy(), d.numpy()
        if isinstance(layer, nn.Conv2d):
            (height, width), size = slopes.shape[2:], layer.kernel_size[0]
            rows = np.stack([
                rows[image, :, i : i + size, j : j + size].ravel()
                for image in range(len(rows)) for i in range(height) for j in range(width)
            ])  # fmt: skip
            slopes = slopes.transpose(0, 2, 3, 1).reshape(len(rows), -1)
            shares = len(rows), len(images)
        else:
            shares = (layer.in_features + 1,) * 2
        if layer.bias is not None:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
            slopes = slopes.astype(np.float64)
        assert rows.dtype == slopes.dtype == (np.float32 if layer.bias is None else np.float64)
        a, g = (v.T @ v / v.dtype.type(n) for v, n in zip((rows, slopes), shares, strict=True))
        values = np.outer(np.linalg.eigvalsh(a), np.linalg.eigvalsh(g)).ravel()
        found.append(np.log(values[values > 0]))
    return found


def shares_below(logs: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(logs), FINE[1:]) / len(logs)


def test_vectors_by_hand(monkeypatch):
    """Convolutions and linear layers, with and without a bias: no layer with null eigenvalues."""
    network = seeded(sides).float()
    images, labels = randn(128, 3, 7, 7).float(), torch.arange(128) % 5
    right = log_eigenvalues(network, images, labels)[:4]
    assert [len(logs) for logs in right] == [324, 872, 1460, 320]
    coarse = np.split(act_bench_vector(network, images, labels), [2, 9, 22])
    monkeypatch.setattr(act_bench_module, "edges", lambda weights: FINE)
    layers = np.split(act_bench_vector(network, images, labels), 4)
    for layer, bins, logs in zip(layers, coarse, right, strict=True):
        below = [np.mean(logs < edge) for edge in np.linspace(-100, 100, len(bins) + 1)[1:]]
        np.testing.assert_allclose(bins, below, atol=2e-3)
        # The mean distance of sorted logarithms; the divisors of linear layers tell by 1.1 and 3.6.
        assert np.abs(layer - shares_below(logs)).sum() * 0.01 < 0.02


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("why", ["few images", "dead inputs"])
def test_the_positive_half_of_null_eigenvalues_counts(why, biased, monkeypatch):
    """They are rounding errors of the layer's dtype, whatever makes them null."""
    monkeypatch.setattr(act_bench_module, "edges", lambda weights: FINE)
    images = randn(100 if why == "few images" else 400, 200).float()
    if why == "dead inputs":
        images[:, ::2] = 0
    labels = torch.arange(len(images)) % 5
    network = seeded(
        lambda: nn.Sequential(nn.Linear(200, 8, bias=biased), nn.Tanh(), nn.Linear(8, 5))
    ).float()
    logs = log_eigenvalues(network, images, labels)[0]
    vector = act_bench_vector(network, images, labels)
    null = int(np.searchsorted(FINE, logs.max() - 12))
    assert 0.2 < shares_below(logs)[null] < 0.45
    assert vector[null] == pytest.approx(shares_below(logs)[null], abs=0.15)
    if why == "few images":
        float64 = int(np.searchsorted(FINE, logs.max() - 30))
        assert (vector[float64] > 0.15) == (shares_below(logs)[float64] > 0.15) == biased


def test_factors_beyond_float32_are_refused():
    network = seeded(
        lambda: nn.Sequential(nn.Linear(40, 8, bias=False), nn.Tanh(), nn.Linear(8, 5))
    )
    with pytest.raises(FeatureError, match="float32 at layer '0'"):
        act_bench_vector(network, randn(20, 40) * 1e30, torch.arange(20) % 5)

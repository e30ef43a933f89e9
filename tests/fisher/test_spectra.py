"""Fisher spectra against dense oracles, explicit loops and curvlinops, all in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bo_act.errors import FeatureError
from bo_act.fisher.kfac import LayerFactors
from bo_act.fisher.layer_spectrum import spectrum
from bo_act.fisher.options import Fisher
from bo_act.fisher.rounding import RESOLUTION
from bo_act.fisher.spectra import NULL_LOG, fim_spectra

FISHERS: tuple[Fisher, ...] = ("mc", "exact", "empirical")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def labels_of(batch: int, classes: int) -> Tensor:
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.GELU(),
        nn.Conv2d(3, 4, (3, 2), dilation=(1, 2), bias=False),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


# --- oracles --------------------------------------------------------------------------------


def dense_fisher(network: nn.Module, images: Tensor, labels: Tensor, fisher: str) -> list[Tensor]:
    """Each layer's exact block, from gradients by parameters; order: weight rows, then biases."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    blocks = [torch.zeros(()).double()] * len(layers)
    for image, label in zip(images, labels, strict=True):
        log_p = network(image[None]).log_softmax(1)[0]
        for c in range(len(log_p)) if fisher == "exact" else [int(label)]:
            share = log_p[c].exp().item() if fisher == "exact" else 1.0
            for i, layer in enumerate(layers):
                parts = torch.autograd.grad(log_p[c], list(layer.parameters()), retain_graph=True)
                d = torch.cat([part.flatten() for part in parts])
                blocks[i] = blocks[i] + share / len(images) * torch.outer(d, d)
    return blocks


def dense_kfac(factors: LayerFactors, biased: bool) -> Tensor:
    """The block that one group's factors stand for, in the order of ``dense_fisher``."""
    a, g = factors.a[0], factors.g[0]
    place = torch.arange(len(g) * len(a)).view(len(g), len(a))
    split = len(a) - biased
    order = torch.cat([place[:, :split].flatten(), place[:, split:].flatten()])
    return torch.kron(g, a)[order][:, order]


def logit_steps(logits: Tensor, labels: Tensor, fisher: str) -> list[Tensor]:
    """One (B, C) weighting of log p for each backward pass, with the sign turned."""
    p = logits.detach().softmax(1)
    one_hot = torch.eye(p.shape[1], dtype=p.dtype)
    if fisher == "empirical":
        return [p - one_hot[labels]]
    return [p[:, c : c + 1].sqrt() * (p - one_hot[c]) for c in range(p.shape[1])]


class Keep(nn.Module):
    """Runs a layer and keeps its input and output, for the loops below."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.seen.append((x.detach(), y))
        return y


def pixels(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Iterator[tuple[int, int, int, int, Tensor]]:
    """(image, group, row, column, patch), read pixel by pixel with zeros outside the image."""
    pads = []
    for axis in range(2):
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        pads.append({"same": total // 2, "valid": 0}.get(layer.padding, layer.padding[axis]))
    size = x.shape[1] // layer.groups
    for n in range(x.shape[0]):
        for group in range(layer.groups):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    patch = []
                    for c in range(group * size, (group + 1) * size):
                        for ki in range(layer.kernel_size[0]):
                            for kj in range(layer.kernel_size[1]):
                                r = i * layer.stride[0] + ki * layer.dilation[0] - pads[0]
                                s = j * layer.stride[1] + kj * layer.dilation[1] - pads[1]
                                inside = 0 <= r < x.shape[2] and 0 <= s < x.shape[3]
                                patch.append(float(x[n, c, r, s]) if inside else 0.0)
                    patch += [1.0] * (layer.bias is not None)
                    yield n, group, i, j, torch.tensor(patch, dtype=torch.float64)


# --- factors --------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(
    "build",
    [
        mlp,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)),
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 4, (1, 5)), nn.GELU(), nn.Flatten(),
            nn.Linear(4, 3),
        ),
    ],
    ids=["mlp", "linear", "conv to one pixel"],
)  # fmt: skip
def test_one_image_and_one_position_is_exact(build, fisher):
    """With B = T = 1, x is a constant and leaves the expectation: E[xxᵀ ⊗ ddᵀ] = A ⊗ G."""
    network, images, labels = seeded(build), randn(1, 5), labels_of(1, 3)
    factors = kronecker_factors(network, images, labels, fisher=fisher).layers
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    dense = dense_fisher(network, images, labels, fisher)
    for layer, block, expected in zip(layers, factors, dense, strict=True):
        torch.testing.assert_close(
            dense_kfac(block, layer.bias is not None), expected, rtol=1e-12, atol=1e-15
        )
        assert block.weights == len(expected)


def test_equal_predictions_are_exact():
    """A layer of zero weights predicts the same for all images, so E[ddᵀ] leaves the mean."""
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 3)))
    nn.init.zeros_(network[0].weight)
    images = randn(7, 5)
    (block,) = kronecker_factors(network, images, None, fisher="exact").layers
    expected = dense_fisher(network, images, labels_of(7, 3), "exact")[0]
    torch.testing.assert_close(dense_kfac(block, True), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_convolution_by_loops(data):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 2]))
    padding = data.draw(
        st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 2)] * 2))
    )
    layer = Keep(
        nn.Conv2d(
            2 * groups,
            2 * groups,
            data.draw(pair),
            stride=1 if padding == "same" else data.draw(pair),
            padding=padding,
            dilation=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
            groups=groups,
            bias=data.draw(st.booleans()),
        )
    )
    network = seeded(lambda: nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)))
    images, labels = randn(2, 2 * groups, 6, 5, seed=data.draw(st.integers(0, 99))), labels_of(2, 3)
    network(images)
    layer.seen.clear()
    fisher = data.draw(st.sampled_from(["exact", "empirical"]))
    logits = network(images)
    x, y = layer.seen[0]
    expected_a, expected_g = 0.0, 0.0
    steps = logit_steps(logits, labels, fisher)
    for step in steps:
        (d,) = torch.autograd.grad(logits, y, step, retain_graph=True)
        for n, group, i, j, patch in pixels(layer.layer, x, y):
            at = d[n, 2 * group : 2 * group + 2, i, j]
            into = torch.eye(groups).double()[group, :, None, None]
            expected_g = expected_g + into * torch.outer(at, at) / 2
            expected_a = expected_a + into * torch.outer(patch, patch) / len(steps)
    expected_a = expected_a / (2 * y.shape[2] * y.shape[3])
    block = kronecker_factors(network, images, labels, fisher=fisher).layers[0]
    assert block.name == "0.layer"
    torch.testing.assert_close(block.a, expected_a, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(block.g, expected_g, rtol=1e-10, atol=1e-16)
    assert block.weights == sum(p.numel() for p in layer.layer.parameters())


class Tokens(nn.Module):
    """A linear layer on (B, tokens, features), used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Keep(nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(torch.tanh(self.shared(x))).mean(1))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_tokens_and_reused_layer_by_loops(fisher):
    network, images, labels = seeded(Tokens), randn(3, 5, 4), labels_of(3, 3)
    logits = network(images)
    (x1, y1), (x2, y2) = network.shared.seen
    a, g = torch.zeros(5, 5).double(), torch.zeros(4, 4).double()
    for n in range(3):
        for t in range(5):
            for x in (x1, x2):
                one = torch.cat([x[n, t], torch.ones(1).double()])
                a += torch.outer(one, one) / (3 * 5 * 2)
    for step in logit_steps(logits, labels, fisher):
        for d in torch.autograd.grad(logits, (y1, y2), step, retain_graph=True):
            for n in range(3):
                for t in range(5):
                    g += torch.outer(d[n, t], d[n, t]) / 3
    block = kronecker_factors(network, images, labels, fisher=fisher).layers[0]
    torch.testing.assert_close(block.a[0], a)
    torch.testing.assert_close(block.g[0], g)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_is_a_layer_on_padded_images(mode):
    padded = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode), nn.Flatten(), nn.Linear(75, 3)
        )
    )
    plain = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(75, 3)))
    images = randn(2, 2, 5, 3)
    wide = nn.functional.pad(images, (2, 2, 1, 1), mode=mode)
    got = kronecker_factors(padded, images, None, fisher="exact").layers[0]
    expected = kronecker_factors(plain, wide, None, fisher="exact").layers[0]
    torch.testing.assert_close(got.a, expected.a)
    torch.testing.assert_close(got.g, expected.g)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(("build", "shape"), [(cnn, (6, 2, 9, 9)), (mlp, (6, 5))])
def test_equals_curvlinops(build, shape, fisher):
    curvlinops = pytest.importorskip("curvlinops")
    network, images = seeded(build), randn(*shape)
    labels = labels_of(6, network(images).shape[1])
    result = kronecker_factors(network, images, labels, fisher=fisher)
    assert result.uncovered == ()
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer, block in zip(layers, result.layers, strict=True):
        operator = curvlinops.KFACLinearOperator(
            network,
            nn.CrossEntropyLoss(),
            list(layer.parameters()),
            [(images, labels)],
            fisher_type={"exact": "type-2", "empirical": "empirical"}[fisher],
            kfac_approx="expand",
            separate_weight_and_bias=False,
            check_deterministic=False,
        )
        theirs = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
        ours = dense_kfac(block, layer.bias is not None)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-16)


def test_mc_converges_to_exact():
    network, images = seeded(mlp), randn(8, 5)
    exact = kronecker_factors(network, images, None, fisher="exact").layers
    draws = [
        # Targets of each image are drawn apart, so that one batch of copies has many draws.
        [b.g for b in kronecker_factors(network, images.repeat(20, 1), None, seed=seed).layers]
        for seed in range(20)
    ]
    for i, block in enumerate(exact):
        seen = torch.stack([draw[i] for draw in draws])
        error = seen.std(0) / math.sqrt(len(seen))
        assert bool(((seen.mean(0) - block.g).abs() < 5 * error + 1e-12).all())
        assert float((seen.mean(0) - block.g).norm() / block.g.norm()) < 0.1


def test_mc_depends_on_its_seed_alone():
    network, images = seeded(mlp), randn(8, 5)
    before = torch.get_rng_state()
    first, again, other = (
        kronecker_factors(network, images, None, seed=seed).layers[0].g for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_empirical_reads_the_labels():
    network, images = seeded(mlp), randn(8, 5)
    labels = torch.zeros(8, dtype=torch.long)
    first = kronecker_factors(network, images, labels, fisher="empirical").layers[0].g
    assert not torch.equal(
        first, kronecker_factors(network, images, labels + 1, fisher="empirical").layers[0].g
    )


@pytest.mark.parametrize("device", DEVICES)
def test_float32_agrees_with_float64(device):
    network, images = seeded(cnn), randn(6, 2, 9, 9)
    expected = kronecker_factors(network, images, None).layers
    got = kronecker_factors(network.float().to(device), images.float().to(device), None).layers
    for ours, right in zip(got, expected, strict=True):
        assert ours.a.dtype == ours.g.dtype == torch.float64
        assert ours.floor == RESOLUTION
        torch.testing.assert_close(ours.a.cpu(), right.a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            ours.g.cpu(), right.g, rtol=1e-3, atol=1e-5 * float(right.g.abs().max())
        )


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_values_whose_squares_leave_float32(size):
    """Tiny gradients and huge inputs are still numbers, though their float32 squares are not.

    Inputs times ``size`` and weights of the last layer divided by it make the same function.
    """

    def build(factor: float) -> nn.Module:
        network = seeded(lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)))
        with torch.no_grad():
            network[1].weight /= factor
        return network

    images = randn(6, 5)
    first, last = kronecker_factors(build(1.0), images, None).layers
    grown = torch.tensor([size] * 4 + [1.0], dtype=torch.float64)
    expected = [first.a * size**2, first.g / size**2, last.a * torch.outer(grown, grown), last.g]
    for dtype in (torch.float32, torch.float64):
        layers = kronecker_factors(build(size).to(dtype), (images * size).to(dtype), None).layers
        got = [factor for layer in layers for factor in (layer.a, layer.g)]
        for ours, right in zip(got, expected, strict=True):
            largest = float(right.abs().max())
            assert largest > 0
            torch.testing.assert_close(ours / largest, right / largest, atol=1e-5, rtol=0)


# --- spectra --------------------------------------------------------------------------------


def factors_of(a: Tensor, g: Tensor) -> LayerFactors:
    return LayerFactors("layer", a, g, a.shape[0] * a.shape[1] * g.shape[1])


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ranks=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 999),
)
def test_spectra_of_dense_blocks(groups, sizes, ranks, seed):
    p, q = sizes
    left, right = randn(groups, p, ranks[0], seed=seed), randn(groups, q, ranks[1], seed=seed + 1)
    layer = factors_of(left @ left.mT, right @ right.mT)
    got = spectrum(layer)
    dense = [torch.linalg.eigvalsh(torch.kron(a, g)) for a, g in zip(layer.a, layer.g, strict=True)]
    kept = groups * min(p, ranks[0]) * min(q, ranks[1])
    assert got.null_mass == pytest.approx(1 - kept / layer.weights, abs=1e-12)
    assert len(got.logs) == layer.weights
    expected = torch.cat(dense).sort().values.clamp_min(0.0).numpy()
    largest = max(float(values.max()) for values in dense)
    # The floors stand above nothing and below everything else.
    np.testing.assert_allclose(
        np.exp(got.logs), expected, rtol=1e-6, atol=40 * RESOLUTION * largest + 2 * np.exp(NULL_LOG)
    )


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    decades=st.floats(0, 20), seed=st.integers(0, 999), share=st.floats(0, 0.1),
)  # fmt: skip
def test_no_feature_jumps_where_a_factor_is_uncertain(sizes, decades, seed, share):
    """A change of a factor by a tenth of its floor moves a logarithm by 0.1, null mass by 0.13."""

    def random_factor(n: int, seed: int) -> Tensor:
        basis = torch.linalg.qr(randn(1, n, n, seed=seed)).Q
        values = 10 ** (-decades * torch.rand(n, generator=torch.Generator().manual_seed(seed)))
        return basis @ torch.diag_embed(values.double())[None] @ basis.mT

    factors = [random_factor(n, seed + i) for i, n in enumerate(sizes)]
    moved = []
    for i, factor in enumerate(factors):
        x = randn(1, *factor.shape[-2:], seed=seed + 10 + i)
        x = x + x.mT
        bound = share * RESOLUTION * factor.diagonal(dim1=1, dim2=2).sum()
        moved.append(factor + x / torch.linalg.matrix_norm(x, 2) * bound)
    before, after = spectrum(factors_of(*factors)), spectrum(factors_of(*moved))
    assert np.abs(before.logs - after.logs).max() <= 2 * math.log(1.1) + 0.02
    assert abs(before.null_mass - after.null_mass) <= 0.25


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 40), seed=st.integers(0, 99))
def test_quantiles_of_a_network(count, seed):
    network, images = seeded(mlp, seed), randn(40, 5, seed=seed)
    result = fim_spectra(network, images, None, quantiles=count, seed=seed)
    factors = kronecker_factors(network, images, None, seed=seed).layers
    assert result.quantiles.shape == (3, count)
    assert result.layers == ("0", "2", "4")
    assert result.weights.tolist() == [24, 12, 12]
    for i, layer in enumerate(factors):
        ordered = spectrum(layer).logs
        for j in range(count):
            u = (j + 0.5) / count
            share_below = np.mean(ordered < result.quantiles[i, j])
            share_upto = np.mean(ordered <= result.quantiles[i, j])
            assert share_below <= u + 1e-12
            assert share_upto >= u - 1e-12
        assert result.null_mass[i] == spectrum(layer).null_mass


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_the_null_space_of_the_head_is_no_accident(seed, dtype):
    """Softmax gradients sum to zero over the classes, whatever rounding does to them."""
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2), nn.SiLU(),
            nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ), seed,
    )  # fmt: skip
    result = fim_spectra(network.to(dtype), randn(64, 3, 16, 16, seed=seed).to(dtype), None)
    assert result.null_mass[2] >= 0.1
    if dtype is not torch.bfloat16:  # which has eps = 0.008, and so a floor of 6e-5
        np.testing.assert_allclose(result.null_mass, [0, 0, 0.1], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_null_mass_counts_the_missing_rank(dtype):
    """Three images cannot span the 21 inputs, nor three gradients the 8 outputs."""
    network = seeded(lambda: nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 6)))
    result = fim_spectra(network.to(dtype), randn(3, 20).to(dtype), None)
    np.testing.assert_allclose(result.null_mass, [1 - 9 / 168, 1 - 9 / 54], atol=1e-12)
    assert np.isfinite(result.quantiles).all()


class Constant(nn.Module):
    """An activation that is constant, by way of the graph or around it."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x) if self.cut else 0 * x + 1


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_constant_activation_leaves_earlier_layers_null(cut, frozen):
    network = seeded(
        lambda: nn.Sequential(nn.Linear(5, 4), Constant(cut), nn.Linear(4, 3))
    ).requires_grad_(not frozen)
    result = fim_spectra(network, randn(6, 5), None, fisher="exact", quantiles=16)
    # The last layer sees one input only, and gradients that sum to zero over three classes.
    assert result.null_mass.tolist() == [1.0, 1 - 2 / 15]
    assert (result.quantiles[0] == NULL_LOG).all()
    assert np.isfinite(result.quantiles).all()
    assert (result.quantiles[1] != NULL_LOG).all()


class Power(nn.Module):
    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() ** self.exponent


@pytest.mark.parametrize(
    ("exponent", "scale", "where"),
    [
        (40.0, 1e3, r"forward pass at layer '2'"),
        (-1.0, 0.0, r"forward pass at layer '2'"),
        (0.5, 0.0, r"backward pass at layer '0'"),
        (1.0, 1e38, r"forward pass at (layer '2'|the logits)"),
    ],
)
def test_not_finite_is_an_error(exponent, scale, where):
    network = seeded(
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), Power(exponent), nn.Linear(4, 3))
    ).float()
    with torch.no_grad():
        network[2].weight *= 10
    with pytest.raises(FeatureError, match=where):
        fim_spectra(network, randn(6, 5).float() * scale, None, fisher="exact")
    assert not network[0]._forward_hooks


# --- the network is left as it was ----------------------------------------------------------


def normed(inplace: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.BatchNorm2d(4),
        nn.Hardtanh(inplace=inplace),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ELU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(training):
    network = seeded(normed).train(training)
    network[4].train(not training)
    images = randn(6, 2, 5, 5)
    kept = images.clone()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    modes = [module.training for module in network.modules()]
    buffers = dict(network.named_buffers())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    fim_spectra(network, images, None)
    assert [module.training for module in network.modules()] == modes
    assert all(after is buffers[name] for name, after in network.named_buffers())
    assert all(torch.equal(state[name], after) for name, after in network.state_dict().items())
    assert all(bool((parameter.grad == 7).all()) for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(images, kept)


def test_it_is_left_as_it_was_after_an_error():
    network = seeded(normed).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError):
        fim_spectra(network, randn(6, 2, 9, 9), None)  # the last layer wants 5 by 5 pixels
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(state[name], after) for name, after in network.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_and_no_dropout(training):
    """Equal to a network in training mode whose dropout is taken out, whatever mode it is in."""
    network, plain = seeded(normed).train(training), seeded(normed).train()
    plain[4] = nn.Identity()
    network[2].running_mean += 5
    images, labels = randn(6, 2, 5, 5), labels_of(6, 3)
    logits, seen = None, []
    handle = plain[0].register_forward_hook(lambda *call: seen.append(call[2]))
    logits = plain(images)
    handle.remove()
    (d,) = torch.autograd.grad(logits, seen, logit_steps(logits, labels, "empirical")[0])
    rows = d.permute(1, 0, 2, 3).flatten(1)
    block = kronecker_factors(network, images, labels, fisher="empirical").layers[0]
    torch.testing.assert_close(block.g[0], rows @ rows.T / 6)


@pytest.mark.parametrize("fisher", FISHERS)
def test_inplace_activations_change_nothing(fisher):
    images, labels = randn(6, 2, 5, 5), labels_of(6, 3)
    plain = kronecker_factors(seeded(normed), images, labels, fisher=fisher).layers
    inplace = kronecker_factors(seeded(lambda: normed(True)), images, labels, fisher=fisher).layers
    for left, right in zip(plain, inplace, strict=True):
        torch.testing.assert_close(left.a, right.a, rtol=1e-12, atol=0)
        torch.testing.assert_close(left.g, right.g, rtol=1e-12, atol=0)


def test_frozen_layers_have_factors_too():
    images = randn(6, 2, 5, 5)
    left = kronecker_factors(seeded(normed), images, None).layers
    right = kronecker_factors(seeded(normed).requires_grad_(False), images, None).layers
    assert all(torch.equal(a.g, b.g) for a, b in zip(left, right, strict=True))


def test_images_are_not_changed_in_place():
    network = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)))
    images = randn(6, 5)
    kept = images.clone()
    fim_spectra(network, images, None)
    assert torch.equal(images, kept)


def test_works_without_gradient_mode():
    with torch.no_grad():
        result = fim_spectra(seeded(mlp), randn(8, 5), None)
        assert not torch.is_grad_enabled()
    assert (result.null_mass < 1).all()


# --- what is not covered --------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.table = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.unused = nn.Linear(4, 4)
        self.slope = nn.PReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift + self.table.weight[:5]
        return self.head(self.slope(self.norm(x)).mean(1))


def test_uncovered_layers_are_named():
    result = fim_spectra(seeded(Mixed), randn(3, 5, 4), None)
    assert result.layers == ("norm", "head")
    assert result.uncovered == ("shift", "table", "unused", "slope")


class OwnPadding(nn.Conv2d):
    """Pads the images that have come to a given size itself."""

    def __init__(self, *args, since: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.since = since

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1,) * 4) if x.shape[-1] == self.since else x)


def test_a_layer_that_uses_its_inputs_differently_is_not_covered():
    for calls, since, side in ((1, 5, 5), (2, 3, 3)):
        layer = OwnPadding(2, 2, 3, since=since)
        layers = [layer] * calls
        network = seeded(
            lambda layers=layers, side=side: nn.Sequential(
                *layers, nn.Flatten(), nn.Linear(2 * side * side, 3)
            )
        )
        result = fim_spectra(network, randn(3, 2, 5, 5), None)
        assert result.layers == (str(calls + 1),)
        assert result.uncovered == ("0",)


def test_a_network_that_is_one_layer():
    result = fim_spectra(seeded(lambda: nn.Linear(5, 3)), randn(8, 5), None)
    assert result.layers == ("(root)",)


def test_nothing_covered_is_an_error():
    network = seeded(lambda: nn.Sequential(nn.Bilinear(2, 2, 3), nn.BatchNorm1d(3), nn.PReLU()))
    network[0].forward = lambda x: nn.Bilinear.forward(network[0], x, x)
    with pytest.raises(FeatureError, match=r"no layer.*convolution.*BatchNorm1d, Bilinear, PReLU"):
        fim_spectra(network, randn(5, 2), None)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (randn(4, 5), None, {"fisher": "empiricl"}, "did you mean 'empirical'"),
        (randn(4, 5), None, {"fisher": "empirical"}, "4 integer labels.*None"),
        (randn(4, 5), labels_of(3, 3), {"fisher": "empirical"}, "4 integer labels"),
        (randn(4, 5), torch.full((4,), 3), {"fisher": "empirical"}, r"\[0, 3\), got 3 to 3"),
        (randn(0, 5), None, {}, "batch of inputs"),
        (randn(2, 4, 2, 5), None, {}, r"logits of shape \(2, classes\),.* got \(2, 4, 2, 3\)"),
        (randn(4, 5), None, {"quantiles": 0}, "quantiles: expected a whole number from 1"),
    ],
)
def test_arguments_that_do_not_fit(images, labels, options, message):
    with pytest.raises(FeatureError, match=message):
        fim_spectra(seeded(mlp), images, labels, **options)


def test_one_output_has_no_softmax():
    network = seeded(lambda: nn.Linear(5, 1))
    with pytest.raises(FeatureError, match=r"softmax of one output.*'mse'"):
        kronecker_factors(network, randn(6, 5), None)
    assert len(kronecker_factors(network, randn(6, 5), None, loss="mse").layers) == 1


@pytest.mark.parametrize("how", ["detach", "no_grad", "checkpoint", "reentrant"])
def test_what_is_cut_off_from_the_gradient_is_named(how):
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if how == "no_grad":
                with torch.no_grad():
                    x = self.stem(x)
            elif how == "detach":
                x = self.stem(x).detach()
            else:
                x = checkpoint(self.stem, x, use_reentrant=how == "reentrant")
            return self.head(x.tanh())

    found = kronecker_factors(seeded(Cut), randn(6, 5), None)
    assert found.uncovered == (() if how == "checkpoint" else ("stem",))


def test_checkpointing_that_hides_its_layers_is_refused():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, self.stem(x).tanh(), use_reentrant=True)
            return self.head(x.tanh())

    with pytest.raises(FeatureError, match="use_reentrant=False"):
        kronecker_factors(seeded(Hidden), randn(6, 5), None)

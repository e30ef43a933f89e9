"""Layers of all kinds: their Fisher blocks against gradients by parameters, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import Tensor, nn
from torch.nn import functional

from bo_act.errors import FeatureError
from bo_act.fisher.kfac import LayerFactors
from bo_act.fisher.spectra import fim_spectra


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(batch: int, classes: int) -> Tensor:
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(1))


def block(network: nn.Module, images: Tensor, name: str, *, labels=None, **options) -> LayerFactors:
    found = kronecker_factors(network, images, labels, **options).layers
    return {layer.name: layer for layer in found}[name]


def per_image_fisher(
    network: nn.Module, images: Tensor, parameters: list[Tensor], loss: str = "cross_entropy"
) -> Tensor:
    """The exact Fisher block of some parameters: mean over images of Jᵀ H J."""
    total = torch.zeros(()).double()
    for image in images:
        f = network(image[None])[0]
        rows = []
        for c in range(len(f)):
            parts = torch.autograd.grad(f[c], parameters, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([
                torch.zeros(p.numel()).double() if part is None else part.flatten()
                for part, p in zip(parts, parameters, strict=True)
            ]))  # fmt: skip
        jacobian, p = torch.stack(rows), f.detach().softmax(0)
        hessian = (
            torch.diag(p) - torch.outer(p, p) if loss == "cross_entropy" else torch.eye(len(f))
        )
        total = total + jacobian.T @ hessian.double() @ jacobian / len(images)
    return total


def weight_first(layer: LayerFactors, biased: bool) -> Tensor:
    """The block that one group's factors stand for, weights first and biases after them."""
    a, g = layer.a[0], layer.g[0]
    place = torch.arange(len(g) * len(a)).view(len(g), len(a))
    split = len(a) - biased
    order = torch.cat([place[:, :split].flatten(), place[:, split:].flatten()])
    return torch.kron(g, a)[order][:, order]


# --- convolutions of one and three axes -----------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (lambda: nn.Conv1d(2, 3, 4), (4,)),
        (lambda: nn.Conv1d(2, 3, 2, dilation=3, bias=False), (4,)),
        (lambda: nn.Conv2d(2, 3, (3, 2)), (3, 2)),
        (lambda: nn.Conv3d(2, 3, (2, 1, 3)), (2, 1, 3)),
    ],
)
def test_one_image_at_one_position_is_exact(layer, size):
    network = seeded(lambda: nn.Sequential(layer(), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4)))
    images = randn(1, 2, *size)
    first = network[0]
    expected = per_image_fisher(network, images, list(first.parameters()))
    got = weight_first(block(network, images, "0", fisher="exact"), first.bias is not None)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("groups", "channels"), [(1, 2), (1, 9), (2, 4), (4, 4)])
def test_conv1d_by_loops(groups, channels):
    layer = nn.Conv1d(channels, 4, 3, stride=2, padding=2, dilation=2, groups=groups)
    network = seeded(lambda: nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)))
    images = randn(3, channels, 11)
    kept = []
    handle = layer.register_forward_hook(lambda *call: kept.append(call[2]))
    logits = network(images)
    handle.remove()
    (y,) = kept
    p, size, outs = logits.detach().softmax(1), channels // groups, 4 // groups
    a = torch.zeros(groups, 3 * size + 1, 3 * size + 1).double()
    g = torch.zeros(groups, outs, outs).double()
    for c in range(3):
        step = p[:, c : c + 1].sqrt() * (p - torch.eye(3).double()[c])
        (d,) = torch.autograd.grad(logits, y, step, retain_graph=True)
        for n in range(3):
            for t in range(y.shape[2]):
                for group in range(groups):
                    at = d[n, group * outs : (group + 1) * outs, t]
                    g[group] += torch.outer(at, at) / 3
    for n in range(3):
        for t in range(y.shape[2]):
            for group in range(groups):
                patch = [
                    images[n, ch, 2 * t + 2 * u - 2] if 0 <= 2 * t + 2 * u - 2 < 11 else 0.0
                    for ch in range(group * size, (group + 1) * size)
                    for u in range(3)
                ]
                x = torch.tensor([*patch, 1.0]).double()
                a[group] += torch.outer(x, x) / (3 * y.shape[2])
    found = block(network, images, "0", fisher="exact")
    torch.testing.assert_close(found.a, a, rtol=1e-6, atol=1e-7)  # patches above are float32
    torch.testing.assert_close(found.g, g, rtol=1e-11, atol=1e-15)


def test_conv3d_is_conv2d_on_flat_images():
    deep = seeded(lambda: nn.Sequential(nn.Conv3d(2, 3, (1, 2, 2)), nn.Flatten(), nn.Linear(27, 3)))
    flat = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 2)), nn.Flatten(), nn.Linear(27, 3)))
    with torch.no_grad():
        flat[0].weight.copy_(deep[0].weight[:, :, 0])
        flat[0].bias.copy_(deep[0].bias)
        flat[2].load_state_dict(deep[2].state_dict())
    images = randn(4, 2, 4, 4)
    one = block(deep, images.unsqueeze(2), "0", fisher="exact")
    other = block(flat, images, "0", fisher="exact")
    torch.testing.assert_close(one.a, other.a)
    torch.testing.assert_close(one.g, other.g)


# --- normalization layers -------------------------------------------------------------------


def normed(norm: nn.Module) -> nn.Module:
    """Two positions of four channels for each of the norms."""
    channels_last = isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    return nn.Sequential(
        nn.Linear(5, 8), nn.Unflatten(1, (2, 4) if channels_last else (4, 2)), norm, nn.Tanh(),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(4),
        nn.LayerNorm((2, 4)),
        nn.LayerNorm(4, bias=False),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        nn.InstanceNorm1d(4, affine=True),
        nn.BatchNorm1d(4),
    ],
    ids=repr,
)
def test_norm_blocks_are_exact_within_a_channel(norm):
    """Also batch normalization, as long as its statistics are not those of the batch."""
    network, images = seeded(lambda: normed(norm)).eval(), randn(6, 5)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(randn(*parameter.shape, seed=2))
    parameters = list(norm.parameters())
    expected = per_image_fisher(network, images, parameters)
    found = block(network, images, "2", fisher="exact", statistics="running")
    k = parameters[0].numel()
    assert found.kind == "norm"
    assert found.weights == sum(p.numel() for p in parameters)
    assert found.a.shape == (k, len(parameters), len(parameters))
    for channel in range(k):
        chosen = [channel + k * i for i in range(len(parameters))]
        torch.testing.assert_close(
            found.a[channel], expected[chosen][:, chosen], rtol=1e-11, atol=1e-15
        )
    assert torch.equal(found.g, torch.ones(k, 1, 1).double())


class ChannelNorm(nn.LayerNorm):
    """Normalizes the channels of images, as subclasses in libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class OwnWords(nn.LayerNorm):
    """The same as its class, computed by itself."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


class Activated(nn.BatchNorm2d):
    """Batch normalization with an activation in it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Same(nn.BatchNorm2d):
    """Batch normalization by another name."""


@pytest.mark.parametrize(
    ("norm", "plain", "width"),
    [
        (Activated(4), None, 3),
        (OwnWords(4), nn.LayerNorm(4), 4),
        (Same(4), nn.BatchNorm2d(4), 3),
    ],
    ids=["activated", "own words", "same"],
)
def test_a_subclass_of_a_norm_is_covered_if_it_does_what_its_class_does(norm, plain, width):
    def network(one: nn.Module) -> nn.Module:
        with torch.no_grad():
            one.weight.copy_(1 + 0.3 * randn(4))
            one.bias.copy_(randn(4, seed=1))
        return seeded(
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3), one, nn.Tanh(), nn.Flatten(), nn.Linear(4 * width**2, 3)
            )
        )

    images = randn(6, 2, width + 2, width + 2)
    for precision in (torch.float64, torch.float32):
        found = kronecker_factors(network(norm).to(precision), images.to(precision), None)
        names = [layer.name for layer in found.layers]
        if plain is None:
            assert names == ["0", "4"]
            assert found.uncovered == ("1",)
        else:
            assert names == ["0", "1", "4"]
            expected = block(network(plain).to(precision), images.to(precision), "1")
            torch.testing.assert_close(found.layers[1].a, expected.a, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("width", [3, 4], ids=["fewer columns", "as many columns as channels"])
def test_norms_over_the_channels_of_images_are_exact(width):
    norm = ChannelNorm(4)
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(4 * width**2, 3)
        )
    )
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * randn(4))
        norm.bias.copy_(randn(4, seed=1))
    images = randn(6, 2, width + 2, width + 2)
    expected = per_image_fisher(network, images, [norm.weight, norm.bias])
    found = block(network, images, "1", fisher="exact")
    for channel in range(4):
        chosen = [channel, 4 + channel]
        torch.testing.assert_close(
            found.a[channel], expected[chosen][:, chosen], rtol=1e-11, atol=1e-15
        )


class PerImage(nn.Module):
    """Batch normalization whose scale and shift are given for each image."""

    def __init__(self, norm: nn.BatchNorm2d, batch: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, affine=False)
        self.scale = nn.Parameter(norm.weight.detach().repeat(batch, 1))
        self.shift = nn.Parameter(norm.bias.detach().repeat(batch, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.scale[..., None, None] + self.shift[..., None, None]


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_batch_norm_with_the_batchs_statistics(fisher):
    """An image's part in the gradient of the whole batch's loss, by parameters of its own."""
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(27, 3)
        )
    )
    images, labels = randn(4, 2, 5, 5), labels_of(4, 3)
    apart = nn.Sequential(network[0], PerImage(network[1], 4).double(), *network[2:])
    logits = apart(images)
    p, blocks = logits.detach().softmax(1), torch.zeros(3, 2, 2).double()
    eye = torch.eye(3).double()
    steps = [p - eye[labels]]
    if fisher == "exact":
        steps = [p[:, c : c + 1].sqrt() * (p - eye[c]) for c in range(3)]
    for step in steps:
        pair = torch.autograd.grad(
            logits, [apart[1].scale, apart[1].shift], step, retain_graph=True
        )
        u = torch.stack(pair, dim=-1)
        blocks += torch.einsum("bki,bkj->kij", u, u) / 4
    found = block(network, images, "1", labels=labels, fisher=fisher)
    torch.testing.assert_close(found.a, blocks, rtol=1e-11, atol=1e-15)


def test_statistics_of_the_batch_or_running():
    network = seeded(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    )
    network[1].running_mean += 0.5
    images = 3 * randn(6, 5)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    running = block(network, images, "3", statistics="running")
    batch = block(network, images, "3")
    hidden = network.eval()[:3](images)
    torch.testing.assert_close(running.a[0, :4, :4], hidden.T @ hidden / 6)
    assert not torch.allclose(running.a, batch.a)
    assert all(torch.equal(state[name], after) for name, after in network.state_dict().items())


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_gradients_of_norms_whose_squares_leave_float32(size):
    def build(factor: float) -> nn.Module:
        """Scale and weight cancel; the gradient between them is that large."""
        network = seeded(lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 3)))
        with torch.no_grad():
            network[0].weight.div_(factor)
            network[1].weight.mul_(factor)
        return network

    images = randn(6, 5)
    expected = block(build(1.0), images, "0").a * size**2
    got = block(build(size).float(), images.float(), "0").a
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(got / expected.abs().max(), expected / expected.abs().max(),
                               rtol=0, atol=1e-5)  # fmt: skip


# --- attention ------------------------------------------------------------------------------


class Projected(nn.Module):
    """Attention from linear layers that hooks see, with the weights of torch's module."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        width, biased = module.embed_dim, module.in_proj_bias is not None
        self.heads, self.zero = module.num_heads, module.add_zero_attn
        self.bias_k, self.bias_v = module.bias_k, module.bias_v
        sizes = (width, module.kdim, module.vdim)
        parts = [nn.Linear(size, width, bias=biased).double() for size in sizes]
        self.q_proj, self.k_proj, self.v_proj = parts
        self.out_proj = nn.Linear(width, width, bias=biased).double()
        with torch.no_grad():
            if module._qkv_same_embed_dim:
                weights = module.in_proj_weight.chunk(3)
            else:
                weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            for part, weight in zip(parts, weights, strict=True):
                part.weight.copy_(weight)
            self.out_proj.weight.copy_(module.out_proj.weight)
            if biased:
                for part, bias in zip(parts, module.in_proj_bias.chunk(3), strict=True):
                    part.bias.copy_(bias)
                self.out_proj.bias.copy_(module.out_proj.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], dim=1)
        if self.zero:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in (k, v))
        if mask is not None:
            mask = functional.pad(mask, (0, k.shape[1] - mask.shape[1]))
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """Reads 5 tokens of width 4 (keys and values of other widths where asked) into 3 logits."""

    def __init__(self, attention: nn.Module, module: nn.MultiheadAttention, masked: bool) -> None:
        super().__init__()
        self.attention, self.first = attention, module.batch_first
        self.kdim, self.vdim = module.kdim, module.vdim
        self.masked = masked
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        k, v = x[..., : self.kdim].sin(), x[..., : self.vdim].cos()
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if self.masked else None
        if isinstance(self.attention, Projected):
            y = self.attention(x, k, v, mask)
        elif self.first:
            y = self.attention(x, k, v, attn_mask=mask)[0]
        else:
            turned = (z.transpose(0, 1) for z in (x, k, v))
            y = self.attention(*turned, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
        return self.head(torch.tanh(y).mean(1))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False, "batch_first": True},
        {"kdim": 3, "vdim": 2},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True, "dropout": 0.5},
    ],
    ids=str,
)
def test_attention_is_its_projections(options, masked, sharing):
    module = seeded(lambda: nn.MultiheadAttention(4, 2, **options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * randn(*parameter.shape, seed=3))
    inside = Reader(module, module, masked).double()
    apart = Reader(Projected(module), module, masked).double()
    apart.head.load_state_dict(inside.head.state_dict())
    images = randn(6, 5, 4)
    torch.testing.assert_close(inside.eval()(images), apart.eval()(images))
    got = kronecker_factors(inside, images, None, fisher="exact", weight_sharing=sharing)
    expected = kronecker_factors(apart, images, None, fisher="exact", weight_sharing=sharing)
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert [layer.name for layer in got.layers] == [*(f"attention.{n}" for n in names), "head"]
    for one, other in zip(got.layers, expected.layers, strict=True):
        assert one.name == other.name
        torch.testing.assert_close(one.a, other.a, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(one.g, other.g, rtol=1e-11, atol=1e-16)
    extra = ("attention.bias_k", "attention.bias_v") if "add_bias_kv" in options else ()
    assert got.uncovered == extra
    assert "forward" not in vars(module)
    assert sum(layer.weights for layer in got.layers) == sum(
        p.numel() for p in inside.parameters()
    ) - 4 * len(extra)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_whole_transformer_layer_is_covered(frozen):
    """Also where torch would run it in one step: in evaluation mode without gradients."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).mean(1))

    network = seeded(Encoder).eval().requires_grad_(not frozen)
    before = torch.get_rng_state()
    result = fim_spectra(network, randn(6, 5, 4), None)
    assert torch.equal(before, torch.get_rng_state())
    parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert result.layers == (
        *(f"layer.self_attn.{part}" for part in parts),
        "layer.linear1", "layer.linear2", "layer.norm1", "layer.norm2", "head",
    )  # fmt: skip
    assert result.uncovered == ()
    assert result.weights.sum() == sum(p.numel() for p in network.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_frozen_encoder_with_padding_is_covered():
    """Torch would give its layers nested tensors."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[:, 3:] = True
            return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])

    network = seeded(Encoder)
    free = fim_spectra(network, randn(6, 5, 4), None)
    frozen = fim_spectra(network.eval().requires_grad_(False), randn(6, 5, 4), None)
    assert len(frozen.layers) == 9
    np.testing.assert_allclose(frozen.quantiles, free.quantiles)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, x, *rest, **options):
        return super().forward(2 * x, *rest, **options)


def test_attention_with_a_forward_of_its_own_is_not_covered():
    module = seeded(lambda: OwnAttention(4, 2, batch_first=True))
    result = fim_spectra(Reader(module, module, False).double(), randn(3, 5, 4), None)
    assert result.layers == ("head",)
    assert result.uncovered == (
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj",
    )


# --- weight sharing -------------------------------------------------------------------------


class Pooled(nn.Module):
    """A linear network that ends in a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).mean(1)


def test_reduce_is_exact_for_a_linear_network_that_ends_in_a_mean():
    network, images = seeded(Pooled), randn(1, 6, 4)
    for name, layer in network.named_children():
        expected = per_image_fisher(network, images, list(layer.parameters()))
        reduced = block(network, images, name, fisher="exact", weight_sharing="reduce")
        expanded = block(network, images, name, fisher="exact")
        torch.testing.assert_close(weight_first(reduced, True), expected, rtol=1e-11, atol=1e-15)
        assert not torch.allclose(weight_first(expanded, True), expected)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.GELU(), nn.Conv2d(3, 4, 1, bias=False),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_reduce_equals_curvlinops(fisher):
    curvlinops = pytest.importorskip("curvlinops")
    network, images, labels = seeded(conv_net), randn(6, 2, 9, 9), labels_of(6, 5)
    found = kronecker_factors(network, images, labels, fisher=fisher, weight_sharing="reduce")
    weighted = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer, ours in zip(weighted, found.layers, strict=True):
        operator = curvlinops.KFACLinearOperator(
            network, nn.CrossEntropyLoss(), list(layer.parameters()), [(images, labels)],
            fisher_type={"exact": "type-2", "empirical": "empirical"}[fisher],
            kfac_approx="reduce", separate_weight_and_bias=False, check_deterministic=False,
        )  # fmt: skip
        theirs = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
        got = weight_first(ours, layer.bias is not None)
        torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-16)


class Twice(nn.Module):
    """A layer that is called twice, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.layer(x))).mean(1))


def test_reduce_of_a_layer_called_twice_by_loops():
    network, images = seeded(Twice), randn(3, 5, 4)
    seen = []
    handle = network.layer.register_forward_hook(lambda *call: seen.append((call[1][0], call[2])))
    logits = network(images)
    handle.remove()
    p, a, g = logits.detach().softmax(1), torch.zeros(5, 5).double(), torch.zeros(4, 4).double()
    for n in range(3):
        x = torch.cat([x[n] for x, _ in seen]).detach().mean(0)
        x = torch.cat([x, torch.ones(1).double()])
        a += torch.outer(x, x) / 3
    for c in range(3):
        step = p[:, c : c + 1].sqrt() * (p - torch.eye(3).double()[c])
        parts = torch.autograd.grad(logits, [y for _, y in seen], step, retain_graph=True)
        for n in range(3):
            d = sum(part[n].sum(0) for part in parts)
            g += torch.outer(d, d) / 3
    found = block(network, images, "layer", fisher="exact", weight_sharing="reduce")
    torch.testing.assert_close(found.a[0], a)
    torch.testing.assert_close(found.g[0], g)


def test_reduce_needs_to_know_the_images():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x[0])  # (tokens of the first image alone, features)
            return self.head(x.mean(1)) + self.head(y).mean(0)

    with pytest.raises(
        FeatureError, match=r"3 images in the first dimension at layer 'layer'.*expand"
    ):
        kronecker_factors(seeded(Turned), randn(3, 5, 4), None, weight_sharing="reduce")


# --- losses ---------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))


def test_mse_is_the_gauss_newton_matrix():
    network, images = seeded(mlp), randn(1, 5)
    for name in ("0", "2"):
        expected = per_image_fisher(network, images, list(network[int(name)].parameters()), "mse")
        got = weight_first(block(network, images, name, fisher="exact", loss="mse"), True)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_mse_sampled_converges_to_exact():
    network, images = seeded(mlp), randn(8, 5)
    exact = block(network, images, "0", fisher="exact", loss="mse").g
    draws = [block(network, images, "0", loss="mse", seed=seed).g for seed in range(400)]
    seen = torch.stack(draws)
    error = seen.std(0) / len(draws) ** 0.5
    assert bool(((seen.mean(0) - exact).abs() < 5 * error).all())
    assert float((seen.mean(0) - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_mse_equals_curvlinops(fisher):
    curvlinops = pytest.importorskip("curvlinops")
    network, images, targets = seeded(mlp), randn(6, 5), randn(6, 3, seed=5)
    found = kronecker_factors(network, images, targets, fisher=fisher, loss="mse").layers
    for layer, ours in zip((network[0], network[2]), found, strict=True):
        operator = curvlinops.KFACLinearOperator(
            network, nn.MSELoss(reduction="sum"), list(layer.parameters()), [(images, targets)],
            fisher_type={"exact": "type-2", "empirical": "empirical"}[fisher],
            separate_weight_and_bias=False, check_deterministic=False,
        )  # fmt: skip
        theirs = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
        # Their loss is the sum of squares over the batch, ours half of it and a mean over images:
        # curvature 2 or, for squared gradients, 4 times ours; times 6.
        factor = {"exact": 2, "empirical": 4}[fisher] * 6
        torch.testing.assert_close(factor * weight_first(ours, True), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothed_and_soft_targets_by_autograd(soft, smoothing):
    network, images, labels = seeded(mlp), randn(6, 5), labels_of(6, 3)
    targets = randn(6, 3, seed=4).softmax(1) if soft else labels
    seen = []
    handle = network[0].register_forward_hook(lambda *call: seen.append(call[2]))
    logits = network(images)
    handle.remove()
    loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    (d,) = torch.autograd.grad(loss, seen)
    options = {"labels": targets, "label_smoothing": smoothing, "loss": "cross_entropy"}
    found = block(network, images, "0", fisher="empirical", **options)
    torch.testing.assert_close(found.g[0], d.T @ d / 6, rtol=1e-11, atol=1e-16)
    exact = block(network, images, "0", fisher="exact", **options)
    assert torch.equal(exact.g, block(network, images, "0", fisher="exact").g)


def test_integer_targets_of_mse_are_one_hot():
    network, images, labels = seeded(mlp), randn(6, 5), labels_of(6, 3)
    hot = functional.one_hot(labels, 3).double()
    options = {"fisher": "empirical", "loss": "mse"}
    one = block(network, images, "0", labels=labels, **options)
    assert torch.equal(one.g, block(network, images, "0", labels=hot, **options).g)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            randn(4, 3),
            {"loss": "cross_entropy"},
            r"probabilities as soft targets \(not negative, each row summing to 1\)",
        ),
        (randn(4, 2), {"loss": "mse"}, r"targets of shape \(4, 3\), got torch.float64 of shape"),
        (
            None,
            {"loss": "hinge"},
            "loss to be one of cross_entropy, mse, binary_cross_entropy, got",
        ),
        (None, {"weight_sharing": "reduced"}, "did you mean 'reduce'"),
        (None, {"statistics": "batches"}, "did you mean 'batch'"),
    ],
)
def test_options_that_do_not_fit(labels, options, message):
    with pytest.raises(FeatureError, match=message):
        kronecker_factors(seeded(mlp), randn(4, 5), labels, fisher="empirical", **options)


# --- what makes a network's spectra its own -------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return functional.dropout(y, 0.5) if self.kind == "dropout" else y + torch.rand(3)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_randomness_in_a_network_is_refused(kind):
    before = torch.get_rng_state()
    with pytest.raises(FeatureError, match=r"different outputs.*functional\.dropout without"):
        fim_spectra(seeded(lambda: Noisy(kind)), randn(6, 5), None)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_that_knows_evaluation_mode_is_not_refused():
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    result = fim_spectra(network.train(), randn(6, 5), None)
    assert np.isfinite(result.quantiles).all()
    assert network.training


def test_layers_that_share_their_parameters_are_one_block():
    """As is one module that is called twice."""

    class Twice(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.second = nn.Linear(4, 4) if tied else self.first
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

        def forward(self, x):
            return self.head(self.second(self.first(x).tanh()).tanh())

    found = []
    for tied in (False, True):
        network = seeded(lambda tied=tied: Twice(tied))
        found.append(kronecker_factors(network, randn(8, 4), None))
    once, twice = found
    assert [layer.name for layer in twice.layers] == ["first", "head"]
    assert twice.uncovered == ()
    for ours, right in zip(twice.layers, once.layers, strict=True):
        torch.testing.assert_close(ours.a, right.a)
        torch.testing.assert_close(ours.g, right.g)

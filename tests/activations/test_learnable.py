"""Functions with learnt scales: they begin as the plain function and stay like torch's layers."""

from __future__ import annotations

import copy
import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bo_act
from bo_act.activations.evaluation import evaluate
from bo_act.activations.formulas import latex, mathml, plain
from bo_act.activations.learnt import learnt_scales, read_learnt
from bo_act.activations.module import Activation
from bo_act.activations.scales import Scales, scale_parameters
from bo_act.errors import ExportError, ExpressionError, NetworkError
from bo_act.fisher.spectra import fim_spectra
from bo_act.specs import TrainingSpec
from bo_act.training.optimization import make_optimizer

TEXTS = [
    "x", "identity(x)", "relu(x)", "zero(x)", "swish(x)", "mul(x,sigmoid(x))",
    "max_n(x,tanh(x),erf(x))", "div(erf(x),add(exp(x),one(x)))", "sub(tanh(x),tanh(x))",
]  # fmt: skip
OPTIONS = [
    {"learnable": "layer"},
    {"learnable": "channel"},
    {"learnable": "layer", "scale_operators": True},
    {"learnable": "channel", "scale_operators": True},
]


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def changed(activation: Activation, shape=(6, 4)) -> Activation:
    """Give it scales as training might."""
    activation(inputs(*shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for scale in activation.parameters():
            scale.copy_(0.5 + torch.rand(scale.shape, generator=generator))
    return activation


# --- values and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_it_begins_as_the_plain_function_bit_by_bit(text, options):
    ours, ordinary = Activation(text, **options), Activation(text)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape in [(3, 4), (2, 5, 4), (2, 4, 3, 3), (2, 4, 2, 2, 2), (4,), (0, 4)]:
            x = inputs(*shape).to(dtype).requires_grad_()
            value = ours(x)
            assert value.dtype == dtype
            assert torch.equal(value, ordinary(x)), (dtype, shape)
            if shape != (3, 4) or not ordinary(x).requires_grad:
                continue
            (mine,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            assert torch.equal(mine, torch.autograd.grad(ordinary(x).sum(), x)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scales_are_trained_and_say_what_the_function_is(options):
    activation = changed(Activation("mul(x,sigmoid(add(x,tanh(x))))", **options))
    x = inputs(6, 4).double()
    value = activation(x)
    value.square().sum().backward()
    assert all(scale.grad.abs().min() > 0 for scale in activation.parameters())
    assert len(list(activation.parameters())) == (5 if "scale_operators" in options else 2)
    found = activation.with_numbers()
    rows = [evaluate(one, column) for one, column in zip(found * 4, x.T, strict=False)]
    torch.testing.assert_close(torch.stack(rows, dim=1), value.detach())


def test_gradients_of_scales_are_those_of_finite_differences():
    activation = changed(
        Activation("mul(x,sigmoid(x))", learnable="channel", scale_operators=True)
    ).double()
    names = [name for name, _ in activation.named_parameters()]
    scales = [p.detach().clone().requires_grad_() for p in activation.parameters()]
    x = inputs(5, 4).double().requires_grad_()

    def call(x, *scales):
        given = dict(zip(names, scales, strict=True))
        return torch.func.functional_call(activation, given, (x,))

    assert torch.autograd.gradcheck(call, (x, *scales))


def test_what_normalizes_comes_before_the_output_scale():
    activation = changed(Activation("exp(x)", normalize=True, learnable="layer"))
    first, last = (float(scale.detach()) for scale in activation.parameters())
    x = inputs(50)
    wanted = last * Activation("exp(x)", normalize=True)(first * x)
    torch.testing.assert_close(activation(x), wanted)
    assert torch.isfinite(activation(x)).all()


def test_the_output_may_be_changed_in_place():
    for text in ("x", "tanh(x)", "exp(x)"):
        activation = changed(Activation(text, learnable="layer"))
        x = inputs(6, 4).requires_grad_()
        activation(x).mul_(2).sum().backward()
        assert x.grad is not None


# --- channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 3), 1), ((2, 5, 3), 2), ((2, 3, 4, 4), 1), ((2, 3, 4, 4, 4), 1), ((3,), 0)],
)
def test_channels_are_where_images_tokens_and_rows_have_them(shape, dim):
    activation = Activation("x", learnable="channel")
    x = torch.ones(shape)
    activation(x)
    with torch.no_grad():
        activation.scales.output.copy_(torch.tensor([1.0, 2.0, 3.0]))
    wanted = torch.tensor([1.0, 2.0, 3.0]).view([3 if k == dim else 1 for k in range(len(shape))])
    assert torch.equal(activation(x), wanted.expand(shape))


def test_channels_may_be_said_to_be_elsewhere():
    activation = Activation("tanh(x)", learnable="channel", channel_dim=-1)
    activation(inputs(2, 7, 7, 3))
    assert activation.scales.input.shape == (3,)
    fresh = activation()
    fresh(inputs(2, 5, 5, 6))
    assert fresh.scales.input.shape == (6,)


def test_a_wrong_number_of_channels_is_said_in_one_line():
    activation = Activation("tanh(x)", learnable="channel")
    activation(inputs(2, 3))
    with pytest.raises(NetworkError, match=r"expected 3 channels .* \(2, 5\).* channel_dim$"):
        activation(inputs(2, 5))
    with pytest.raises(NetworkError, match="has no such dimension"):
        Activation("tanh(x)", learnable="channel", channel_dim=3)(inputs(2, 5))
    with pytest.raises(NetworkError, match="an input with channels"):
        Activation("tanh(x)", learnable="channel")(torch.tensor(1.0))
    assert Activation("tanh(x)", learnable="layer")(torch.tensor(1.0)).shape == ()


@pytest.mark.parametrize("wrong", ["chanel", "both", True, 1, ""])
def test_a_wrong_word_is_said(wrong):
    with pytest.raises(ExpressionError, match=r"expected 'layer', 'channel' or None, got"):
        Activation("relu(x)", learnable=wrong)


# --- like any layer of torch's ----------------------------------------------------------------


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), Activation("mul(x,sigmoid(x))", **options), nn.Flatten(),
        nn.Linear(64, 8), Activation("tanh(x)", **options), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_copies_pickles_checkpoints_and_state_dicts_carry_the_values(options):
    one = network(**options)
    x = inputs(2, 1, 6, 6)
    before = one(x)
    with torch.no_grad():
        for scale in scale_parameters(one):
            scale.mul_(1.5)
    value = one(x)
    assert not torch.equal(value, before)
    buffer = io.BytesIO()
    torch.save(one[1], buffer)
    buffer.seek(0)
    maps = inputs(2, 4, 3, 3)
    assert torch.equal(torch.load(buffer)(maps), one[1](maps))
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other(x), value)
        with torch.no_grad():
            next(scale_parameters(other)).zero_()
        assert torch.equal(one(x), value)  # nothing is shared
    other = network(**options)  # lazy ones, too
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), value)


def test_one_that_has_seen_nothing_yet_is_copied_as_it_is():
    one = Activation("tanh(x)", learnable="channel")
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one()):
        other(inputs(2, 3))
        assert other.scales.input.shape == (3,)
    with pytest.raises(ExpressionError, match="no channels before its first input"):
        one.with_numbers()


def test_a_fresh_module_learns_by_itself():
    one = changed(Activation("tanh(x)", learnable="layer", scale_operators=True))
    fresh = one()
    assert fresh.learnable == "layer"
    assert [scale.item() for scale in fresh.parameters()] == [1.0, 1.0]
    assert repr(fresh) == "Activation(tanh(x), learnable='layer', scale_operators=True)"


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_tracing_exporting_checkpointing_and_transforms(options):
    one, x = network(**options), inputs(2, 1, 6, 6)
    one(x)
    changed(one[1], (2, 4, 4, 4))
    value = one(x)
    assert torch.equal(torch.fx.symbolic_trace(one)(x), value)
    torch.testing.assert_close(torch.export.export(one, (x,)).module()(x), value)
    torch.testing.assert_close(torch.jit.trace(one, x)(x), value)
    torch.testing.assert_close(torch.func.vmap(one)(x[None])[0], value)
    again = checkpoint(one, x.requires_grad_(), use_reentrant=False)
    again.sum().backward()
    assert all(scale.grad is not None for scale in scale_parameters(one))
    with pytest.raises(ExpressionError, match="trace a network"):
        torch.fx.symbolic_trace(one[1])
    with pytest.raises(ExpressionError, match=r"torch\.compile or torch\.export"):
        torch.jit.script(one[1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_trains_scales_like_eager():
    torch.compiler.reset()
    one, x = network(learnable="channel", scale_operators=True), inputs(2, 1, 6, 6)
    one(x)
    other = copy.deepcopy(one)
    compiled = torch.compile(other)
    for _ in range(2):
        for net, call in ((one, one), (other, compiled)):
            call(x).square().sum().backward()
            with torch.no_grad():
                for weight in net.parameters():
                    weight.sub_(0.01 * weight.grad)
            net.zero_grad()
    torch.testing.assert_close(other(x), one(x), rtol=1e-4, atol=1e-5)


def test_it_is_not_fused_and_says_so():
    one = Activation("mul(x,sigmoid(x))", fused=True, learnable="layer")
    assert one.why_not_fused == "its scales are learned"
    assert torch.equal(one(inputs(3)), Activation("mul(x,sigmoid(x))")(inputs(3)))
    assert Activation("mul(x,sigmoid(x))").why_not_fused is None


def test_replaced_activations_learn():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    bo_act.replace_activations(net, Activation("tanh(x)", learnable="channel"))
    net(inputs(2, 4))
    assert [scale.shape[0] for scale in scale_parameters(net)] == [4, 4, 6, 6]
    assert net[1].scales is not net[3].scales


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_weight_decay_leaves_scales_alone(optimizer, decay):
    net = network(learnable="layer")
    spec = TrainingSpec(
        optimizer=optimizer, weight_decay=0.5, decay=decay, learning_rate=0.1, momentum=0.0
    )
    steps = make_optimizer(net, spec)
    before = [scale.item() for scale in scale_parameters(net)]
    weight = net[0].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    steps.step()
    assert [scale.item() for scale in scale_parameters(net)] == before
    assert not torch.equal(net[0].weight, weight)
    every = [id(p) for group in steps.param_groups for p in group["params"]]
    assert sorted(every) == sorted(map(id, net.parameters()))


def test_spectra_are_those_of_the_plain_function():
    """Scales are no weights of a layer: left out, and named."""
    x, labels = inputs(16, 1, 6, 6), torch.arange(16) % 3
    wanted = fim_spectra(network(), x, labels)
    for learnable in ("layer", "channel"):
        net = network(learnable=learnable)
        net(x)
        found = fim_spectra(net, x, labels)
        assert found.uncovered == ("1.scales", "4.scales")
        assert found.layers == wanted.layers
        np.testing.assert_array_equal(found.quantiles, wanted.quantiles)
        np.testing.assert_array_equal(found.null_mass, wanted.null_mass)


# --- formulas, exports, records -----------------------------------------------------------------


def test_formulas_have_the_numbers():
    one = Activation("mul(x,sigmoid(x))", learnable="layer", scale_operators=True)
    with torch.no_grad():
        for scale, value in zip(one.parameters(), (1.25, -0.5, 2.0), strict=True):
            scale.fill_(value)
    (found,) = one.with_numbers()
    assert plain(found) == "2 * 1.25 * x * (-0.5) * sigmoid(1.25 * x)"
    assert latex(found).startswith(r"2 \cdot 1.25 \cdot x \, \left(-0.5\right) \cdot \sigma\left(")
    assert "<mn>1.25</mn>" in mathml(found)
    (plain_one,) = Activation("exp(x)", normalize=True).with_numbers()
    assert plain(plain_one).startswith("0.4627 * (exp(x) - 1.649)")


@pytest.mark.parametrize("text", ["mul(x,sigmoid(add(x,tanh(x))))", "x", "max_n(x,erf(x),exp(x))"])
@pytest.mark.parametrize("normalize", [False, True])
def test_exports_carry_the_values(text, normalize):
    one = Activation(text, normalize=normalize, learnable="layer", scale_operators=True)
    changed(one)
    x = torch.linspace(-4, 4, 101)
    names: dict = {}
    exec(bo_act.export(one, to="torch", name="learnt"), names)
    torch.testing.assert_close(names["learnt"](x), one(x).detach())
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(bo_act.export(one, to="onnx"))
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), one(x).detach(),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    assert "its learned or normalizing numbers" in " ".join(bo_act.export(one, to="jax").split())
    if bo_act.export(one, to="latex") == bo_act.export(text, to="latex"):
        pytest.fail("the formula has no numbers")


def test_an_export_in_jax_and_keras_carries_the_values():
    pytest.importorskip("jax")
    one = changed(Activation("mul(x,sigmoid(x))", learnable="layer", scale_operators=True))
    names: dict = {}
    exec(bo_act.export(one, to="jax", name="learnt"), names)
    x = torch.linspace(-4, 4, 101)
    wanted = one(x).detach().numpy()
    np.testing.assert_allclose(np.asarray(names["learnt"](x.numpy())), wanted, atol=1e-6)
    assert repr(float(one.scales.input)) in bo_act.export(one, to="keras")


def test_scales_for_channels_are_exported_with_their_network():
    one = changed(Activation("tanh(x)", learnable="channel"))
    for target in ("torch", "jax", "keras", "onnx", "latex"):
        with pytest.raises(ExportError, match=r"4 channels; export the network"):
            bo_act.export(one, to=target)
    single = changed(Activation("tanh(x)", learnable="channel"), (3, 1))
    assert "its learned or normalizing numbers" in bo_act.export(single)


def test_what_was_learnt_is_kept_and_read():
    net = network(learnable="channel", scale_operators=True)
    net(inputs(2, 1, 6, 6))
    changed(net[1], (2, 4, 4, 4))
    changed(net[4], (2, 8))
    first, second = read_learnt(learnt_scales(net))
    assert (first.place, first.channels, len(first.after)) == ("1", 4, 4)
    assert (second.place, second.channels, len(second.after)) == ("4", 8, 5)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for one, whole in zip(first.after, net[1].with_numbers(), strict=True):
        torch.testing.assert_close(evaluate(one, x), evaluate(whole, x), rtol=1e-3, atol=1e-4)
    assert learnt_scales(network()) == []


WHOLE = {"place": "0", "function": "relu(x)", "operators": False, "channels": None}
WHOLE |= {"scales": [[1.0, 2.0]]}
DAMAGED = [
    {"function": "relu("}, {"scales": [["a", "b"]]}, {"scales": [[1.0]]},
    {"scales": [[1.0, float("nan")]]}, {"scales": 3},
]  # fmt: skip


@pytest.mark.parametrize(
    "damaged", [None, "x", 3, [None], [{}], *([WHOLE | one] for one in DAMAGED)]
)
def test_a_damaged_record_is_left_out(damaged):
    assert len(read_learnt([WHOLE])) == 1
    assert read_learnt(damaged) == []


def test_scales_of_a_module_in_any_precision():
    one = network(learnable="channel")
    one(inputs(2, 1, 6, 6))
    for dtype in (torch.bfloat16, torch.float64):
        other = copy.deepcopy(one).to(dtype)
        assert other(inputs(2, 1, 6, 6).to(dtype)).dtype == dtype
        assert all(scale.dtype == dtype for scale in scale_parameters(other))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(one(inputs(2, 1, 6, 6))).all()
    assert isinstance(one[1].scales, Scales)

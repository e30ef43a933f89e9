"""What works with nn.SiLU works with Activation: the table of docs/how_to/own_network.md.

Each row is tried with torch's own layer and with functions of ours: one that keeps its input, one
that keeps its output, the identity, a composed one, normalized, fused.
"""

from __future__ import annotations

import copy
import io
import multiprocessing.reduction
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from bo_act.activations import module
from bo_act.activations.module import Activation, _rebuild
from bo_act.activations.operators import OPERATORS
from bo_act.errors import ExpressionError

Make = Callable[[], nn.Module]
COMPOSED = "mul(sigmoid(x),erf(x))"
FUNCTIONS: dict[str, Make] = {
    "nn.SiLU": nn.SiLU,
    "swish": lambda: Activation("swish(x)"),
    "keeps its output": lambda: Activation("tanh(x)"),
    "identity": lambda: Activation("x"),
    "composed": lambda: Activation(COMPOSED),
    "normalized": lambda: Activation("relu(x)", normalize=True),
    "fused": lambda: Activation(COMPOSED, fused=True),
}


@pytest.fixture(autouse=True)
def _quickly_compiled(monkeypatch):
    """Everything of torch.compile but the code generator, which takes seconds a function."""
    compile_ = torch.compile
    monkeypatch.setattr(
        "bo_act.activations.fused.torch.compile",
        lambda function, **options: compile_(function, **{"backend": "aot_eager"} | options),
    )
    module._fused.cache_clear()
    torch.compiler.reset()
    yield
    module._fused.cache_clear()


def network(make: Make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), make(), nn.Conv2d(4, 4, 3), make(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2.0, 2.0, 6, dtype=dtype) + 0.1


def quotient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The slope of an elementwise function, by differences."""
    return (function(x + 1e-6) - function(x - 1e-6)) / 2e-6


def plain(function: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function as ordinary operators, for expected values."""
    if isinstance(function, Activation):
        function.fused = False
    return function


# --- the rows: what is found and what is expected ----------------------------------------------


def symbolic_trace(make: Make) -> tuple[Any, Any]:
    net = network(make)
    traced = torch.fx.symbolic_trace(net)
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert {"2", "4"} <= {str(node.target) for node in calls}
    assert type(traced.get_submodule("2")) is type(net[2])
    again = pickle.loads(pickle.dumps(traced))
    alone = torch.fx.symbolic_trace(net[2])
    x = images()
    half = alone(x.bfloat16())
    assert half.dtype == torch.bfloat16
    return (traced(x), again(x), alone(x), half), (net(x), net(x), net[2](x), net[2](x.bfloat16()))


def feature_extractor(make: Make) -> tuple[Any, Any]:
    from torchvision.models.feature_extraction import create_feature_extractor

    net, x = network(make), images()
    found = create_feature_extractor(net, {"2": "first", "4": "second"})(x)
    return (found["first"], found["second"]), (net[:3](x), net[:5](x))


def quantization(make: Make) -> tuple[Any, Any]:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    net, x = network(make), images()
    prepared = prepare_fx(copy.deepcopy(net), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantized = convert_fx(prepared)
    assert any("quantized" in type(one).__module__ for one in quantized.modules())
    found, expected = quantized(x), net(x)
    assert (found - expected).abs().max() < 0.1
    return 0, 0


def export(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    exported = torch.export.export(net, (x,))
    return exported.module()(x), net(x)


def script(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    scripted = torch.jit.script(net)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    frozen = torch.jit.freeze(scripted)
    assert isinstance(net[2], type(make()))
    pickle.dumps(net)  # it has not become another network
    alone = torch.jit.script(net[2])
    kinds = [points(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    assert [alone(one).dtype for one in kinds] == [one.dtype for one in kinds]
    return (
        [scripted(x), loaded(x), frozen(x), *(alone(one) for one in kinds)],
        [*[net(x)] * 3, *(net[2](one) for one in kinds)],
    )


def trace(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    with torch.no_grad():
        second = torch.jit.trace(net, x)
    return (torch.jit.trace(net, x)(x), second(x)), (net(x), net(x))


def onnx(make: Make) -> tuple[Any, Any]:
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x, file = network(make), images(), io.BytesIO()
    torch.onnx.export(net, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(found), net(x)


def compiled(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    found = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    return found, net(x)


def transforms(make: Make) -> tuple[Any, Any]:
    function, x = make(), points()
    net = network(make).double()
    weights = dict(net.named_parameters())
    slope = quotient(plain(make()), x)
    found = (
        torch.func.grad(lambda x: function(x).sum())(x),
        torch.vmap(torch.func.grad(function))(x),
        torch.func.jvp(function, (x,), (torch.ones_like(x),))[1],
        torch.func.jacfwd(function)(x).diagonal(),
        torch.vmap(function, in_dims=1)(torch.stack([x, x]).T)[:, 0],
        torch.func.functional_call(net, weights, (images().double(),)),
    )
    assert torch.func.hessian(lambda x: function(x).sum())(x).shape == (6, 6)
    return found, (slope, slope, slope, slope, function(x)[:1].expand(2), net(images().double()))


def second_derivatives(make: Make) -> tuple[Any, Any]:
    function, x = make(), points().requires_grad_()
    weights = torch.linspace(1.0, 2.0, 6, dtype=x.dtype).requires_grad_()
    (slope,) = torch.autograd.grad(function(x), x, weights, create_graph=True)
    (by_weight,) = torch.autograd.grad(slope.sum(), weights, retain_graph=True)
    found = torch.zeros_like(x)
    if slope.grad_fn is not None:
        found = torch.autograd.grad(slope.sum(), x, allow_unused=True)[0]
        found = torch.zeros_like(x) if found is None else found
    reference = plain(make())

    def slope_of(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(reference(x), x, weights.detach())[0]

    return (found, by_weight), (quotient(slope_of, x.detach()), quotient(reference, x.detach()))


def forward_mode(make: Make) -> tuple[Any, Any]:
    function, x = make(), points()
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, 2 * torch.ones_like(x))))
    return found.tangent, 2 * quotient(plain(make()), x)


def checkpointing(make: Make) -> tuple[Any, Any]:
    function = make()
    slopes = []
    for way in (lambda x: checkpoint(function, x, use_reentrant=False), plain(make())):
        x = points().requires_grad_()
        way(x).square().sum().backward()
        slopes.append(x.grad)
    return slopes[0], slopes[1]


def in_place(make: Make) -> tuple[Any, Any]:
    x = points().requires_grad_()
    y = make()(x)
    y += x
    z = plain(make())(x.clone()).clone() + x
    return torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0]


def state_dicts(make: Make) -> tuple[Any, Any]:
    net, file = network(make), io.BytesIO()
    assert make().state_dict() == {}
    torch.save(net.state_dict(), file)
    other = network(nn.ReLU)  # none of our keys
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    return list(other.state_dict().values()), list(net.state_dict().values())


def whole_modules(make: Make) -> tuple[Any, Any]:
    net, file = network(make).train(), io.BytesIO()
    torch.save(net, file)
    torchs = [type(one) for one in net.modules() if not isinstance(one, Activation)]
    with torch.serialization.safe_globals(torchs):
        loaded = torch.load(io.BytesIO(file.getvalue()))
    assert repr(loaded) == repr(net)
    assert loaded[2].training
    return loaded(images()), net(images())


def copies(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    net[2].register_forward_hook(doubled)
    net[2].mark = "kept"
    others = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(net)),
    ]
    assert all(one[2] is not net[2] and one[2].mark == "kept" for one in others)
    assert not any(one[2].training for one in others)
    assert copy.copy(net[2]).mark == "kept"
    return [one(x) for one in others], [net(x)] * 3


def doubled(layer: nn.Module, _: Any, y: Tensor) -> Tensor:
    return 2 * y


def data_parallel(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    replica = net[2]._replicate_for_data_parallel()
    return (nn.DataParallel(net)(x), replica(x)), (net(x), net[2](x))


def dtypes(make: Make) -> tuple[Any, Any]:
    found = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = points(dtype).requires_grad_()
        y = make()(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert y.dtype == slope.dtype == dtype
        found.append(slope.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(make)(images())
    assert y.dtype == torch.bfloat16
    assert network(make).half()(images().half()).dtype == torch.float16
    expected = quotient(plain(make()), points())
    for one, tolerance in zip(found, (0.01, 0.05, 1e-4, 1e-6), strict=True):
        torch.testing.assert_close(one, expected, rtol=tolerance, atol=tolerance)
    return 0, 0


def layouts(make: Make) -> tuple[Any, Any]:
    x = images()
    function, reference = make(), plain(make())
    ways = [x, x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x[:, :, ::2],
            x[:1].expand(4, -1, -1, -1), x[..., :0], x[:0], x[0, 0, 0, 0]]  # fmt: skip
    for one in ways[:3]:
        assert function(one).stride() == one.stride()
    return [function(one) for one in ways], [reference(one) for one in ways]


def no_numbers(make: Make) -> tuple[Any, Any]:
    function, x = make(), images()
    assert function(x.to("meta")).device.type == "meta"
    with torch.device("meta"):
        assert network(make)[2](torch.empty(2, 3)).shape == (2, 3)
    return make_fx(function)(x)(x), function(x)


def without_gradients(make: Make) -> tuple[Any, Any]:
    net, x = network(make), images()
    expected = net(x).detach()
    with torch.no_grad():
        one = net(x)
    with torch.inference_mode():
        two = net(x) + 0
    net.requires_grad_(False)
    three = net(x)
    assert not one.requires_grad
    assert not three.requires_grad
    return (one, two.clone(), three), (expected, expected, expected)


def watched(make: Make) -> tuple[Any, Any]:
    slopes = []
    for watching in (False, True):
        net = network(make)
        torch.use_deterministic_algorithms(watching)
        try:
            with torch.autograd.set_detect_anomaly(watching):
                net(images()).square().sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        slopes.append([weight.grad for weight in net.parameters()])
    return slopes[1], slopes[0]


ROWS = {
    "`torch.fx.symbolic_trace`": symbolic_trace,
    "torchvision's `create_feature_extractor`": feature_extractor,
    "quantization by `prepare_fx` and `convert_fx`": quantization,
    "`torch.export.export`": export,
    "`torch.jit.script`, saved and loaded": script,
    "`torch.jit.trace`": trace,
    "`torch.onnx.export`": onnx,
    "`torch.compile`, without a graph break": compiled,
    "`torch.func`: `grad`, `vmap`, `jvp`, `hessian`, `functional_call`": transforms,
    "second derivatives (`create_graph=True`)": second_derivatives,
    "derivatives in forward mode": forward_mode,
    "`torch.utils.checkpoint`": checkpointing,
    "changing the output in place (`y += x`, `Dropout(inplace=True)`)": in_place,
    "state dicts: no keys of its own": state_dicts,
    "`torch.save` and `torch.load` of whole networks, by the safe default": whole_modules,
    "copies and pickles, with hooks and attributes": copies,
    "`nn.DataParallel`": data_parallel,
    "`half()`, `bfloat16()`, `double()`, autocast": dtypes,
    "`channels_last`, strides, expanded and empty tensors, scalars": layouts,
    "the meta device, `make_fx`": no_numbers,
    "`no_grad`, `inference_mode`, frozen networks": without_gradients,
    "anomaly detection, deterministic algorithms": watched,
}


@pytest.mark.filterwarnings("ignore")  # of TorchScript and quantization, that they are deprecated
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("row", ROWS)
def test_row(row, function):
    found, expected = ROWS[row](FUNCTIONS[function])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if function == "fused":
        assert FUNCTIONS[function]().why_not_fused is None  # nothing of this was an error to it


def test_the_documentation_has_these_rows():
    page = Path(__file__).parents[2] / "docs" / "how_to" / "own_network.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    start = lines.index("| with `Activation` as with `nn.SiLU` | |") + 2
    rows = [line.strip("| ").split(" | ")[0] for line in lines[start : start + len(ROWS)]]
    assert rows == list(ROWS)
    assert not lines[start + len(ROWS)].startswith("|")


# --- and more of saving and tracing -------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_scripted_in_every_dtype(name):
    text = f"{name}(x)" if OPERATORS[name].kind == "unary" else f"{name}(softplus(x),sigmoid(x))"
    activation = Activation(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(activation)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = points(dtype)
        for _ in range(3):  # after two runs it is optimized
            found = scripted(x)
        torch.testing.assert_close(found, activation(x), rtol=1e-6, atol=1e-6)


NOT_IN_ONNX = {
    "erfc", "sinh", "cosh", "expm1", "arcsinh", "elish", "bessel_i0e", "bessel_i1e",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATORS)
def test_the_documentation_says_which_operators_torch_exports_to_onnx(name, capfd):
    text = f"{name}(x)" if OPERATORS[name].kind == "unary" else f"{name}(softplus(x),sigmoid(x))"
    net = nn.Sequential(nn.Linear(2, 2), Activation(text)).eval()
    try:
        torch.onnx.export(net, (torch.ones(1, 2),), io.BytesIO(), dynamo=False)
    except torch.onnx.errors.UnsupportedOperatorError:
        assert name in NOT_IN_ONNX
    else:
        assert name not in NOT_IN_ONNX


@pytest.mark.parametrize("first", ["import bo_act, torch", "import torch, bo_act"])
def test_a_checkpoint_is_loaded_by_the_safe_default_in_a_new_process(tmp_path, first):
    activation = Activation(COMPOSED, normalize=True).eval()
    torch.save({"activation": activation, "weights": torch.ones(2)}, tmp_path / "it.pt")
    script = (
        f"{first}\nloaded = torch.load('it.pt')['activation']\n"
        "print(loaded, loaded.training, type(loaded) is bo_act.Activation)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{activation!r} False True\n", done.stderr


class Named(Activation):
    """Somebody's subclass, with arguments of its own."""

    def __init__(self, name: str) -> None:
        super().__init__("tanh(x)")
        self.name = name


def test_subclasses_are_copied_as_what_they_are():
    for other in (copy.deepcopy(Named("mine")), pickle.loads(pickle.dumps(Named("mine")))):
        assert type(other) is Named
        assert (other.name, str(other.expression)) == ("mine", "tanh(x)")


def test_a_checkpoint_makes_activations_alone(tmp_path):
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild, (pickle.dumps,)

    torch.save(Hostile(), tmp_path / "it.pt")
    with pytest.raises(ExpressionError, match=r"an expression as text .* got <built-in"):
        torch.load(tmp_path / "it.pt", weights_only=False)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(tmp_path / "it.pt")


class Loop(nn.Module):
    """A network with a loop that torch.export has to unroll, and a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = nn.functional.relu(layer(x)) * scale
        return x


@pytest.mark.filterwarnings("ignore")
def test_a_network_whose_calls_are_replaced_is_traced_and_saved():
    from bo_act.networks.libraries import replace_in_classifier

    net = Loop()
    replace_in_classifier(
        net, lambda: Activation("tanh(x)"), name="n", image=(3, 2, 2), num_classes=12
    )
    x = torch.randn(2, 3, 2, 2)
    expected = net(x)
    torch.compiler.reset()
    for other in (
        torch.fx.symbolic_trace(net),
        pickle.loads(pickle.dumps(net)),
        copy.deepcopy(net),
        torch.export.export(net, (x,)).module(),
        torch.jit.trace(net, x),
        torch.compile(net, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(x), expected)
    with pytest.raises(Exception, match=r"use torch\.jit\.trace or torch.export"):
        torch.jit.script(net)

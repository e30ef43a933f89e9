"""Functions compiled to one kernel: the same values and slopes as operator by operator."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from bo_act.activations.fused import Fused
from bo_act.activations.module import Activation, _fused

SAMPLE = (
    "mul(sigmoid(x),erf(x))",
    "max(relu(x),tanh(x))",
    "div(exp(x),add(one(x),exp(x)))",
    "min(square(x),abs(x))",
    "sub(swish(x),gelu(x))",
    "selu(sinh(x))",
)
MANY = tuple(
    f"{binary}({left}(x),{right}(x))"
    for binary in ("add", "mul", "max")
    for left in ("tanh", "erf", "arctan")
    for right in ("sigmoid",)
)


@pytest.fixture(autouse=True)
def _fresh():
    _fused.cache_clear()
    torch.compiler.reset()
    yield
    _fused.cache_clear()
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch) -> list[object]:
    """Everything of the way but the code generator, which takes seconds a function."""
    compile_, made = torch.compile, []

    def compiled(function, **options):
        made.append(function)
        return compile_(function, backend="aot_eager", **options)

    monkeypatch.setattr("bo_act.activations.fused.torch.compile", compiled)
    return made


def values_and_slopes(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(x)
    # Not all alike, so that slopes of neighbours cannot stand for one another.
    weights = torch.linspace(0.5, 2.0, x.numel(), dtype=x.dtype).view(x.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), x)[0]


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64).to(dtype)
    return [
        images,
        images.to(memory_format=torch.channels_last),
        images[0],
        images.transpose(1, 3),
        images[:, 1::2],
        images[0, 0, 0, :1],
        images[:0],
    ]


def agree(text: str, dtype: torch.dtype, *, normalize: bool = False) -> None:
    fused = Activation(text, normalize=normalize, fused=True)
    eager = Activation(text, normalize=normalize)
    # In float32 one kernel may round a little differently from several.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    for x in inputs(dtype):
        found, expected = values_and_slopes(fused, x), values_and_slopes(eager, x)
        torch.testing.assert_close(found, expected, **tolerance)
        if x.is_contiguous() or x.stride() == inputs(dtype)[1].stride():
            assert found[0].stride() == found[1].stride() == x.stride()
    with torch.no_grad():
        torch.testing.assert_close(fused(inputs(dtype)[0]), eager(inputs(dtype)[0]), **tolerance)
    assert fused.why_not_fused is None


DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Each compilation takes seconds: three functions, each in another dtype; all in `make test-all`.
COMPILED = [
    pytest.param(text, dtype, marks=[] if row + column in (0, 3) and row < 3 else pytest.mark.slow)
    for row, text in enumerate(SAMPLE)
    for column, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("text", "dtype"), COMPILED)
def test_shapes_layouts_and_dtypes(traced, text, dtype):
    agree(text, dtype)
    agree(text, dtype)
    assert len(traced) == 2  # forward and backward


def test_a_normalized_function(traced):
    agree("swish(x)", torch.float64, normalize=True)


@pytest.mark.slow
def test_more_functions_than_the_compiler_keeps_of_one(traced):
    """Each is compiled: none falls back because there were others before it."""
    limit = 6  # one function has a few compilations of its own
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
        for text in MANY:
            agree(text, torch.float32)
    assert len(traced) == 2 * len(MANY) > 12


def test_two_layers_share_what_is_compiled(traced):
    x = torch.randn(8)
    for _ in range(2):
        Activation("mul(tanh(x),erf(x))", fused=True)(x)
    assert len(traced) == 2  # forward and backward


def test_a_single_operator_is_a_kernel_already(traced):
    single = Activation("relu(x)", fused=True)
    single(torch.randn(5))
    assert not traced
    assert single.why_not_fused is None
    Activation("relu(x)", normalize=True, fused=True)(torch.randn(5))
    assert len(traced) == 2  # forward and backward


def test_where_nothing_compiles_it_is_eager(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr("bo_act.activations.fused.torch.compile", broken)
    fused = Activation("mul(tanh(x),erf(x))", fused=True)
    x = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), torch.tanh(x) * torch.erf(x))
    assert fused.why_not_fused == "RuntimeError: no compiler here"
    assert Activation("tanh(x)").why_not_fused is None


def test_too_little_memory_is_not_the_compilers_fault(monkeypatch):
    def small(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("bo_act.activations.fused.torch.compile", small)
    one = Fused(torch.tanh)
    with pytest.raises(torch.OutOfMemoryError):
        one(torch.randn(5))
    assert one.why_not is None


@pytest.mark.parametrize("text", [*SAMPLE, "add(one(x),zero(x))", "exp(identity(tanh(x)))"])
def test_what_asks_for_more_than_a_slope(traced, text):
    """Graphs that are gone through twice, second derivatives, outputs changed in place."""
    fused, eager = Activation(text, fused=True), Activation(text)
    slopes = []
    for function in (fused, eager):
        x = torch.linspace(-2.05, 2, 12, dtype=torch.float64).requires_grad_()
        # With x added, so that a constant has a slope too.
        (first,) = torch.autograd.grad((function(x) + x.square()).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, retain_graph=True)
        y = function(x) + 0 * x
        y.sum().backward(retain_graph=True)
        y.sum().backward()
        z = function(x) * 1
        z.mul_(2).add_(x)
        z = function(x)
        z += x
        (third,) = torch.autograd.grad(z.sum(), x)
        slopes.append((first, second, x.grad, third))
    torch.testing.assert_close(*slopes)
    assert fused.why_not_fused is None


@pytest.mark.parametrize("broken", [0, 1])
def test_either_pass_may_fail_to_compile(monkeypatch, broken):
    made = []

    def compiled(function, **_):
        made.append(function)

        def run(*tensors):
            if function is made[broken]:
                raise RuntimeError("no code")
            return function(*tensors)

        return run

    monkeypatch.setattr("bo_act.activations.fused.torch.compile", compiled)
    fused, eager = Activation(SAMPLE[0], fused=True), Activation(SAMPLE[0])
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(values_and_slopes(fused, x), values_and_slopes(eager, x))
    assert fused.why_not_fused == "RuntimeError: no code"
    torch.testing.assert_close(values_and_slopes(fused, x), values_and_slopes(eager, x))


def test_errors_of_others_are_not_the_compilers(traced):
    """What hooks on kept tensors raise passes through, and says nothing of the compiler."""
    fused, x = Activation(SAMPLE[0], fused=True), torch.randn(5, requires_grad=True)

    def stop(_):
        raise KeyError("mine")

    hooks = torch.autograd.graph.saved_tensors_hooks(stop, lambda x: x)
    with hooks, pytest.raises(KeyError, match="mine"):
        fused(x)
    fused(x).sum().backward()
    assert fused.why_not_fused is None


def test_copies_are_fused_too():
    fused = Activation("tanh(x)", fused=True)
    for one in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert one.fused
    assert repr(fused) == "Activation(tanh(x), fused=True)"


# --- networks that users compile ---------------------------------------------------------------

THIRTY = [
    f"{binary}({left}(x),{right}(x))"
    for binary in ("add", "mul", "max")
    for left in ("tanh", "erf", "relu", "elu", "sigmoid")
    for right in ("swish", "arctan")
]


class Network(torch.nn.Module):
    def __init__(self, activation: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.last = torch.nn.Linear(4, 4), activation, torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x)))


def run_compiled(count: int, before=lambda: None, **options: object) -> int:
    """How many networks run compiled, each with another function."""
    ran = []

    def backend(graph, _):
        def run(*tensors):
            ran.append(text)
            return graph.forward(*tensors)

        return run

    for text in THIRTY[:count]:
        before()
        network = torch.compile(Network(Activation(text)), backend=backend, **options)
        network(torch.ones(3, 4))
    return len(set(ran))


@pytest.mark.parametrize("count", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_the_documented_lines_have_all_networks_run_compiled(count):
    assert run_compiled(count) == 8  # why the documentation has these lines
    assert run_compiled(count, torch.compiler.reset) == count
    torch.compiler.reset()
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        assert run_compiled(count, isolate_recompiles=True) == count


@pytest.mark.slow
@pytest.mark.parametrize("text", SAMPLE)
def test_generated_code(text):
    for dtype in (torch.float32, torch.float64):
        agree(text, dtype)

"""Names of other libraries, understood where they mean one operator."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from bo_act import Activation, ActivationSampler, export
from bo_act.activations.expressions import canonical, parse
from bo_act.activations.names import ALIASES, own_names
from bo_act.activations.operators import OPERATORS
from bo_act.benchmark.act_bench import read_act_bench
from bo_act.errors import ExpressionError, SpecError
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec

X = torch.cat([torch.linspace(-6, 6, 1201, dtype=torch.float64), torch.tensor([-40.0, 0.0, 40.0])])


def values(text: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return Activation(text)(X.to(dtype))


# --- whatever PyTorch calls it --------------------------------------------------------------

MODULES = {
    name: module
    for name, module in vars(nn.modules.activation).items()
    if isinstance(module, type)
    and issubclass(module, nn.Module)
    and module.__module__.endswith("n")
} | {"Identity": nn.Identity}


@pytest.mark.parametrize("name", sorted(MODULES))
@pytest.mark.parametrize("written", ["{}(x)", "nn.{}(x)", "torch.nn.{}", "{}"])
def test_modules_of_pytorch(name, written):
    """What is understood computes the same, and what does not is not understood."""
    try:
        ours = values(written.format(name))
    except ExpressionError as error:
        if "did you mean" in str(error):
            pytest.fail(f"another function looks like it: {error}")
        return
    theirs = MODULES[name]()(X)
    # Their softplus is the identity from 20 on, 2e-9 away.
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


NOT_BY_NAME = {"max", "min", "sum", "prod"}


@pytest.mark.parametrize("module", [functional, torch, torch.special], ids=lambda m: m.__name__)
def test_functions_of_pytorch(module):
    """Of one argument: none is understood as another one."""
    understood = set()
    for name in dir(module):
        if name.startswith("_") or name in NOT_BY_NAME:
            continue
        try:
            ours = values(f"{name}(x)")
        except ExpressionError:
            continue
        theirs = getattr(module, name)(X)
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-8, atol=1e-8)
        understood.add(name)
    assert len(understood) >= {"torch": 14, "torch.special": 6}.get(module.__name__, 10)


def test_functions_of_two_arguments():
    y = torch.sin(3 * X)
    for name in ("add", "subtract", "multiply", "divide", "true_divide", "power", "pow", "maximum",
                 "minimum", "sub", "mul", "div"):  # fmt: skip
        theirs = getattr(torch, {"power": "pow"}.get(name, name))(X, y)
        tree = parse(f"torch.{name}(x,tanh(x))")
        ours = OPERATORS[tree.name].function(X, y)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ("silu(x)", "swish(x)"),
        ("SiLU", "swish(x)"),
        ("nn.SiLU", "swish(x)"),
        ("relu", "relu(x)"),
        ("leaky_relu(x)", "leakyrelu(x)"),
        ("torch.nn.functional.leaky_relu(x)", "leakyrelu(x)"),
        ("F.logsigmoid(x)", "log_sigmoid(x)"),
        ("logistic(x)", "sigmoid(x)"),
        ("asinh(atan(neg(x)))", "arcsinh(arctan(negative(x)))"),
        ("maximum(relu, Tanh)", "max(relu(x),tanh(x))"),
        ("subtract(multiply(x,x), divide(x, erf))", "sub(mul(x,x),div(x,erf(x)))"),
        ("special.i0e", "bessel_i0e(x)"),
        ("max_n(silu,relu,x)", "max_n(swish(x),relu(x),x)"),
        ("hard_sigmoid", "hard_sigmoid(x)"),
    ],
)
def test_the_operators_own_name_is_kept(written, own):
    assert str(parse(written)) == own
    assert own_names(own) == own


def test_aliases_are_no_operators():
    assert not ALIASES.keys() & OPERATORS.keys()
    assert set(ALIASES.values()) <= OPERATORS.keys()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("hardsigmoid(x)", "clip(x / 6 + 1/2, 0, 1); hard_sigmoid here is clip(0.2 x + 0.5, 0, 1)"),
        ("nn.Hardsigmoid(x)", "hard_sigmoid here is clip(0.2 x + 0.5, 0, 1)"),
        ("F.hardswish(x)", "swish(x) is x sigmoid(x)"),
        ("sin(x)", "'sin', which is a different function, not an operator here"),
        ("sqrt(x)", "a different function"),
        ("atanh(x)", "a different function"),
        ("tanhshrink(x)", "write sub(x,tanh(x))"),
        ("i0(x)", "bessel_i0e is e^-|x| I0(x)"),
        ("sillu(x)", "did you mean 'swish'?"),
        ("relu(x) * 2", "write mul(a,b) for a * b"),
        ("-x", "negative(a) for -a"),
        ("relu(z)", "the input is written x"),
    ],
)
def test_what_is_another_function_is_said(written, message):
    with pytest.raises(ExpressionError) as caught:
        parse(written)
    assert message in str(caught.value)


def test_expressions_that_are_proposed_instead_are_read():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for name in ("tanhshrink", "lisht", "serf", "tanhexp", "phish", "relu_squared"):
        with pytest.raises(ExpressionError, match="write ") as caught:
            parse(f"{name}(x)")
        text = str(caught.value).split("write ")[1].split(" (at")[0]
        assert Activation(text)(x).shape == x.shape
    torch.testing.assert_close(Activation("sub(x,tanh(x))")(x), functional.tanhshrink(x))


@pytest.mark.parametrize("text", ["relu(" * 5000 + "x" + ")" * 5000, "x" * 100_000, "(" * 100_000,
                                  "add(" * 5000, "relu(x) " * 2000, "max(x,\n" * 64])  # fmt: skip
def test_what_is_long_or_deep_is_refused_on_one_line(text):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    with pytest.raises(SpecError) as caught:
        Space(SpaceSpec(name="a", unary=("relu",), schemas=(text,)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_error_in_a_long_text_shows_the_place():
    text = "add(" * 30 + "x,qqq(x))" + ",x)" * 29
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    shown = f"at position 122, '...{text[82:122]}' ^ '{text[122:162]}...')"
    assert shown in str(caught.value)


# --- doors ----------------------------------------------------------------------------------


def test_a_space_in_names_of_pytorch_is_the_same_space():
    theirs = SpaceSpec(
        name="s",
        unary=("Tanh", "silu", "neg"),
        binary=("multiply", "maximum"),
        schemas=("binary(unary(x),atan(x))",),
        expressions=("nn.SiLU(x)",),
        baselines=("F.relu(x)",),
    )
    ours = SpaceSpec(
        name="s",
        unary=("tanh", "swish", "negative"),
        binary=("mul", "max"),
        schemas=("binary(unary(x),arctan(x))",),
        expressions=("swish(x)",),
        baselines=("relu(x)",),
    )
    one, other = Space(theirs), Space(ours)
    assert one.hash == other.hash
    assert one.distributions == other.distributions
    assert one.baselines == other.baselines
    assert one.catalogue.hash == other.catalogue.hash
    with pytest.raises(SpecError, match="'swish' is listed twice"):
        Space(theirs.model_copy(update={"unary": ("silu", "swish")}))
    with pytest.raises(SpecError, match="hard_sigmoid here is clip"):
        Space(theirs.model_copy(update={"unary": ("hardsigmoid",)}))


def test_functions_are_looked_up_by_any_name(act_bench):
    index = act_bench.catalogue.index("swish(x)")
    for text in ("silu", "nn.SiLU(x)", "multiply(x, logistic)"):
        assert act_bench.catalogue.index(text) == index
    assert export("silu", to="latex") == export("swish(x)", to="latex")
    sampler = ActivationSampler(load_space("classic"), baselines=("silu", "nn.ReLU"))
    assert [sampler.catalogue.text(one) for one in sampler.searcher.baselines] == [
        "swish(x)",
        "relu(x)",
    ]


def test_keys_of_act_bench_files(tmp_path):
    space = load_space("classic")
    accuracies = {"SiLU(x)": 0.9, "relu": 0.8, "nn.Tanh(x)": 0.7, "hardsigmoid(x)": 0.6}
    file = tmp_path / "b.json"
    file.write_text(json.dumps({k: {"Validation Accuracy": v} for k, v in accuracies.items()}))
    benchmark = read_act_bench(file, space=space)
    values = benchmark.runs["validation_value"][:, 0]
    for text, value in (("swish(x)", 0.9), ("relu(x)", 0.8), ("tanh(x)", 0.7)):
        assert values[space.catalogue.index(text)] == pytest.approx(value)
    assert benchmark.unmatched == ("hardsigmoid(x)",)


def test_commands(bo_act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = bo_act("show", "nn.SiLU", "--json")
    assert code == 0
    assert json.loads(out)["activation"] == "swish(x)"
    code, out, _ = bo_act("export", "silu", "--to", "latex")
    assert code == 0
    code, _, err = bo_act("show", "hardsigmoid(x)")
    assert code == 2
    assert "hard_sigmoid here is" in " ".join(err.split())


def test_a_study_file(bo_act, tmp_path, monkeypatch):
    """Baselines of the confirmation are one function by whatever name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "classic"\ntrials = 4\n[model]\nname = "mlp"\n[data]\n'
        'name = "digits"\ntrain = 128\nvalidation = 100\n[training]\nepochs = 1\nthreads = 1\n'
        '[features]\nfim = false\n[confirm]\nseeds = 1\ntop = 1\nbaselines = ["silu", "SiLU(x)"]\n'
    )
    code, out, _ = bo_act("run", "s.toml", "--quiet", "--json")
    assert code == 0
    texts = [one["activation"] for one in json.loads(out)["confirmed"]]
    assert texts.count("swish(x)") == 1
    assert "silu" not in out.lower()
    assert all(str(canonical(parse(text))) == text for text in texts)

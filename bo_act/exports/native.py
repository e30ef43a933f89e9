"""Exports for frameworks with their own functions: PyTorch, JAX, Keras.

Each operator is a template over its operands ``{0}``, ``{1}``; the same choices as in
``activations/operators.py``: discarded branches must not overflow and poison the gradient.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from bo_act.activations.evaluation import plan
from bo_act.exports.primitives import VALUES
from bo_act.exports.source import Source, indented
from bo_act.exports.terms import Term, Writer

_COMMON = {
    "identity": "{0}",
    "negative": "-{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
}

_TORCH = {
    "zero": "torch.zeros_like({0})",
    "one": "torch.ones_like({0})",
    "softplus": "0.0 - functional.logsigmoid(-{0})",
    "hard_sigmoid": "torch.clamp(0.2 * {0} + 0.5, 0.0, 1.0)",
    "elish": "torch.where({0} >= 0, {0}, torch.expm1(torch.clamp({0}, max=0.0))) "
    "* torch.sigmoid({0})",
    "mish": "{0} * torch.tanh(0.0 - functional.logsigmoid(-{0}))",
    "leakyrelu": "functional.leaky_relu({0}, 0.01)",
    "log_sigmoid": "functional.logsigmoid({0})",
    "swish": "functional.silu({0})",
    "arcsinh": "torch.asinh({0})",
    "arctan": "torch.atan({0})",
    "bessel_i0e": "torch.special.i0e({0})",
    "bessel_i1e": "torch.special.i1e({0})",
    "pow": "torch.pow({0}, {1})",
    "max": "torch.maximum({0}, {1})",
    "min": "torch.minimum({0}, {1})",
    **{name: f"functional.{name}({{0}})" for name in ("relu", "elu", "selu", "gelu")},
    **{
        name: f"torch.{name}({{0}})"
        for name in (
            "abs", "reciprocal", "square", "exp", "erf", "erfc", "sinh", "cosh", "tanh", "expm1",
            "sigmoid",
        )
    },
}  # fmt: skip

# At zero abs and leaky_relu have a slope of their own choice, so they are written out.
_JAX = {
    "abs": "jnp.where({0} == 0, 0, jnp.abs({0}))",
    "zero": "jnp.zeros_like({0})",
    "one": "jnp.ones_like({0})",
    "reciprocal": "1 / {0}",
    "erf": "jax.scipy.special.erf({0})",
    "erfc": "jax.scipy.special.erfc({0})",
    "bessel_i0e": "jax.scipy.special.i0e({0})",
    "bessel_i1e": "jax.scipy.special.i1e({0})",
    "softplus": "0.0 - jax.nn.log_sigmoid(-{0})",
    # Not clip, whose slope of 0 would meet an infinite one outside and make it no number.
    "hard_sigmoid": "jnp.where({0} < -2.5, 0, jnp.where({0} > 2.5, 1, 0.2 * {0} + 0.5))",
    "elish": "jnp.where({0} >= 0, {0}, jnp.expm1(jnp.minimum({0}, 0.0))) * jax.nn.sigmoid({0})",
    "mish": "{0} * jnp.tanh(0.0 - jax.nn.log_sigmoid(-{0}))",
    "leakyrelu": "jnp.where({0} > 0, {0}, 0.01 * {0})",
    "swish": "jax.nn.silu({0})",
    "gelu": "jax.nn.gelu({0}, approximate=False)",
    "pow": "_power({0}, {1})",
    "max": "jnp.maximum({0}, {1})",
    "min": "jnp.minimum({0}, {1})",
    **{
        name: f"jax.nn.{name}({{0}})" for name in ("relu", "elu", "selu", "sigmoid", "log_sigmoid")
    },
    **{
        name: f"jnp.{name}({{0}})"
        for name in (
            "square", "exp", "sinh", "cosh", "tanh", "expm1", "arcsinh", "arctan",
        )
    },
}  # fmt: skip

# Bessel functions are missing here: they are written in primitives.
_KERAS = {
    "abs": "ops.where({0} == 0, 0.0, ops.abs({0}))",
    "zero": "ops.zeros_like({0})",
    "one": "ops.ones_like({0})",
    "reciprocal": "1 / {0}",
    "softplus": "0.0 - ops.log_sigmoid(-{0})",
    "hard_sigmoid": "ops.where({0} < -2.5, 0.0, ops.where({0} > 2.5, 1.0, 0.2 * {0} + 0.5))",
    "elish": "ops.where({0} >= 0, {0}, ops.expm1(ops.minimum({0}, 0.0))) * ops.sigmoid({0})",
    "mish": "{0} * ops.tanh(0.0 - ops.log_sigmoid(-{0}))",
    "leakyrelu": "ops.where({0} > 0, {0}, 0.01 * {0})",
    "swish": "ops.silu({0})",
    "gelu": "0.5 * {0} * ops.erfc(-0.7071067811865476 * {0})",  # keeps the left tail
    "pow": "_power({0}, {1})",
    "max": "ops.maximum({0}, {1})",
    "min": "ops.minimum({0}, {1})",
    **{
        name: f"ops.{name}({{0}})"
        for name in (
            "square", "exp", "erf", "erfc", "sinh", "cosh", "tanh", "expm1", "sigmoid",
            "log_sigmoid", "arcsinh", "arctan", "relu", "elu", "selu",
        )
    },
}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """Templates of a framework.

    Attributes:
        operators: templates; others are written in primitives.
        primitives: templates for these.
    """

    operators: dict[str, str]
    primitives: dict[str, str] = field(default_factory=dict)


KERAS_PRIMITIVES = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "greater": "{0} > {1}",
    "less": "{0} < {1}",
    "equal": "{0} == {1}",
    "max": "ops.maximum({0}, {1})",
    "min": "ops.minimum({0}, {1})",
    "where": "ops.where({0}, {1}, {2})",
    "abs": _KERAS["abs"],
    **{name: f"ops.{name}({{0}})" for name in ("exp", "log", "sqrt")},
}

TORCH = Dialect(_COMMON | {"softsign": "{0} / (1 + torch.abs({0}))"} | _TORCH)
JAX = Dialect(_COMMON | {"softsign": "{0} / (1 + jnp.abs({0}))"} | _JAX)
KERAS = Dialect(_COMMON | {"softsign": "{0} / (1 + ops.abs({0}))"} | _KERAS, KERAS_PRIMITIVES)


class Lines(Writer):
    """Lines of code, one per primitive, without duplicates."""

    def __init__(self, primitives: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._primitives = primitives
        self._known: dict[str, str] = {}

    def call(self, name: str, *arguments: str) -> str:
        """Write a line; a literal below zero is put in brackets."""
        return self.line(self._primitives[name].format(*map(_bracketed, arguments)))

    def line(self, code: str) -> str:
        """Write a line of code; return the name of its value."""
        if code not in self._known:
            name = self._known[code] = f"v{len(self._known) + 1}"
            self.lines.append(f"{name} = {code}")
        return self._known[code]

    def constant(self, value: float) -> str:
        """Return a literal."""
        if not math.isfinite(value):
            return f'float("{value}")'
        return repr(value)


def _bracketed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def body(source: Source, dialect: Dialect, x: str) -> tuple[list[str], str]:
    """Return lines that compute an expression from a variable, and the result's name."""
    lines = Lines(dialect.primitives)

    def affine(value: str, factor: float, shift: float = 0.0) -> str:
        if shift:
            value = lines.line(dialect.operators["sub"].format(value, _bracketed(repr(shift))))
        if factor == 1.0:
            return value
        return lines.line(dialect.operators["mul"].format(_bracketed(repr(factor)), value))

    first, *factors = source.factors
    values = [affine(x, first)]
    for (name, operands), factor in zip(plan(source.expression), factors, strict=True):
        arguments = [values[i] for i in operands]
        values.append(affine(_step(lines, dialect, name, arguments), factor))
    return lines.lines, affine(values[-1], source.scaled.output, source.scaled.shift)


def _step(lines: Lines, dialect: Dialect, name: str, arguments: list[str]) -> str:
    folded = {"sum_n": "add", "prod_n": "mul", "max_n": "max", "min_n": "min"}.get(name)
    if folded is not None:
        form = dialect.operators[folded]
        return functools.reduce(lambda a, b: lines.line(form.format(a, b)), arguments)
    if name == "identity":
        return arguments[0]
    if name in dialect.operators:
        return lines.line(dialect.operators[name].format(*arguments))
    return VALUES[name](*(Term(lines, argument) for argument in arguments)).text


def torch_code(source: Source) -> str:
    """Return a PyTorch function and a module."""
    lines, result = body(source, TORCH, "wide")
    return f'''"""{source.title}"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def {source.name}(x: Tensor) -> Tensor:
    """{source.description("float16 and bfloat16 are computed in float32 inside.")}
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
{indented(lines)}
    return {result}.to(x.dtype)


class {source.class_name}(nn.Module):
    """{source.name}(x), elementwise, as a module without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return {source.name}(x)
'''


def jax_code(source: Source) -> str:
    """Return a JAX function."""
    lines, result = body(source, JAX, "wide")
    dtypes = (
        "float16 and bfloat16 are computed in float32 inside; float64 needs\n    "
        'jax.config.update("jax_enable_x64", True).'
    )
    return f'''"""{source.title}"""

import jax
import jax.numpy as jnp

{_helpers(lines, _JAX_POWER)}
def {source.name}(x: jax.Array) -> jax.Array:
    """{source.description(dtypes)}
    """
    x = jnp.asarray(x)
    wide = x.astype(jnp.float32) if x.dtype in (jnp.float16, jnp.bfloat16) else x
{indented(lines)}
    return {result}.astype(x.dtype)
'''


_JAX_POWER = '''
def _power(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^b; where both are zero jnp.power has the slope 0 * inf."""
    zeros = (a == 0) & (b == 0)
    return jnp.where(zeros, 1, jnp.power(jnp.where(zeros, 1, a), b))

'''
_KERAS_POWER = '''
def _power(a, b):
    """a^b; where both are zero some backends have the slope 0 * inf."""
    zeros = ops.logical_and(a == 0, b == 0)
    ones = ops.ones_like(a)
    return ops.where(zeros, ones, ops.power(ops.where(zeros, ones, a), b))

'''


def _helpers(lines: list[str], power: str) -> str:
    return power if any("_power(" in line for line in lines) else ""


def keras_code(source: Source) -> str:
    """Return a Keras 3 function, for any of its backends."""
    lines, result = body(source, KERAS, "wide")
    dtypes = "float16 and bfloat16 are computed in float32 inside."
    if any(name.startswith("bessel") for name, _ in plan(source.expression)):
        dtypes += (
            "\n\n    Keras has no Bessel functions: they are polynomials here, accurate to a"
            "\n    relative 4e-7, in float64, too."
        )
    return f'''"""{source.title}"""

import keras
from keras import ops

{_helpers(lines, _KERAS_POWER)}
@keras.saving.register_keras_serializable(package="activations")
def {source.name}(x):
    """{source.description(dtypes)}
    """
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    wide = ops.cast(x, "float32") if dtype in ("float16", "bfloat16") else x
{indented(lines)}
    return ops.cast({result}, dtype)
'''

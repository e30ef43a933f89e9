"""Triton: one kernel forward, one backward, and the autograd function around them.

The backward kernel computes the slope along x by forward mode, operator by operator, and writes it
times the incoming gradient; nothing but x is kept for it.
"""

from __future__ import annotations

from bo_act.activations.module import plan
from bo_act.exports.native import TRITON_PRIMITIVES, Lines
from bo_act.exports.primitives import VALUES, slope
from bo_act.exports.source import Source, indented
from bo_act.exports.terms import Term


def triton_code(source: Source) -> str:
    """Return kernels, an autograd function, a function and a module."""
    forward, value = _written(source, with_slope=False)
    backward, gradient = _written(source, with_slope=True)
    name, class_name = source.name, source.class_name
    dtypes = (
        "Computed in float32 whatever the dtype. What Triton lacks (tanh, expm1, erfc, powers,\n"
        "    Bessel functions) is written out, accurate to a relative 1e-6 or so."
    )
    return f'''"""{source.title}"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _forward_kernel(x_pointer, out_pointer, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x = tl.load(x_pointer + place, mask=inside, other=0.5).to(tl.float32)
{indented(forward)}
    tl.store(out_pointer + place, {value}, mask=inside)


@triton.jit
def _backward_kernel(x_pointer, gradient_pointer, out_pointer, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x = tl.load(x_pointer + place, mask=inside, other=0.5).to(tl.float32)
    incoming = tl.load(gradient_pointer + place, mask=inside, other=0.0).to(tl.float32)
{indented(backward)}
    tl.store(out_pointer + place, incoming * ({gradient}), mask=inside)


class _{class_name}Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        if x.numel():
            _forward_kernel[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), BLOCK=1024)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = torch.empty_like(x)
        if x.numel():
            _backward_kernel[(triton.cdiv(x.numel(), 1024),)](
                x, gradient, out, x.numel(), BLOCK=1024
            )
        return out


def {name}(x: Tensor) -> Tensor:
    """{source.description(dtypes)}
    """
    return _{class_name}Function.apply(x)


class {class_name}(nn.Module):
    """{name}(x), elementwise, as a module without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return {name}(x)
'''


def _written(source: Source, *, with_slope: bool) -> tuple[list[str], str]:
    """Return a kernel's lines, and what they call the value or, if asked, the slope along x."""
    lines = Lines(TRITON_PRIMITIVES)
    x = Term(lines, "x")
    pairs: list[tuple[Term, Term | None]] = [(x, lines.term(1.0))]
    for name, operands in plan(source.expression):
        arguments = [pairs[i] for i in operands]
        value = VALUES[name](*(term for term, _ in arguments))
        pairs.append((value, slope(name, arguments, value) if with_slope else None))
    value, tangent = pairs[-1]
    if not with_slope:
        return lines.lines, value.text
    wanted = "0.0" if tangent is None else tangent.text
    return lines.lines, wanted

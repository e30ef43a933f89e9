"""Values and slopes of one or many functions, with slopes by autograd.

Functions with trees of one structure are evaluated together, operator by operator, so a few
thousand take as many calls as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bo_act.activations.evaluation import evaluate, plan
from bo_act.activations.expressions import Expression
from bo_act.activations.operators import OPERATORS
from bo_act.activations.scales import Scaled
from bo_act.dependencies.torch_state import plain_torch

# Functions evaluated at once: a tensor of 512 rows is 1 MB.
_CHUNK = 512
_CODES = {name: code for code, name in enumerate(OPERATORS)}
_FUNCTIONS: list[Callable[..., Tensor]] = [operator.function for operator in OPERATORS.values()]


class Functions(Protocol):
    """N functions by index, such as a ``Catalogue``."""

    def __len__(self) -> int: ...

    def expression(self, index: int) -> Expression:
        """Return a spelling of a function."""
        ...


@plain_torch()
def value_and_slope(expression: Expression | Scaled, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and f'(x) elementwise, by autograd.

    Args:
        expression: the function f.
        x: (points,) floating.
    """
    x = x.detach().clone().requires_grad_()
    value = evaluate(expression, x)
    if not value.requires_grad:  # a constant
        return value.detach(), torch.zeros_like(value)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def values_and_slopes(
    functions: Functions, x: Tensor
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield indices (n,), values (n, points) and slopes (n, points), batch by batch.

    Args:
        functions: N of them.
        x: (points,) floating.
    """
    for batch in batches(functions):
        value, slope = batch.derivatives(x, 1)
        yield list(batch.indices), value, slope


@dataclass(frozen=True)
class Batch:
    """Functions with trees of one structure, evaluated together.

    Attributes:
        operands: of each step, numbers of earlier values; 0 is x.
        codes: for each function, the operators of the steps as one byte each.
        indices: of the functions.
    """

    operands: tuple[tuple[int, ...], ...]
    codes: tuple[bytes, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, which: Sequence[int]) -> Batch:
        """Return some of the functions, possibly repeated."""
        codes, indices = zip(*((self.codes[i], self.indices[i]) for i in which), strict=True)
        return Batch(self.operands, codes, indices)

    @plain_torch()  # under no_grad all slopes would be zero
    def derivatives(self, x: Tensor, order: int) -> tuple[Tensor, ...]:
        """Return values and derivatives up to an order by autograd, (n, points) each.

        Args:
            x: (points,) or, for each function its own, (n, points).
            order: 0 for values only.
        """
        start = x.expand(len(self), -1).clone().requires_grad_()
        values = [start]
        for step, operands in enumerate(self.operands):
            names = np.array([code[step] for code in self.codes])
            values.append(_apply(names, [values[operand] for operand in operands]))
        results = [values[-1]]
        for left in range(order)[::-1]:
            if not results[-1].requires_grad:  # a constant
                results.append(torch.zeros_like(start))
                continue
            (slope,) = torch.autograd.grad(
                results[-1].sum(), start, create_graph=left > 0, materialize_grads=True
            )
            results.append(slope)
        # Copied, because autograd's zeros have no memory yet.
        return tuple(torch.empty_like(start).copy_(result.detach()) for result in results)


def batches(functions: Functions) -> Iterator[Batch]:
    """Sort functions by the structure of their trees, a few hundred at a time.

    Ordered, so that neighbours share most operators.
    """
    groups: dict[tuple[tuple[int, ...], ...], list[tuple[bytes, int]]] = defaultdict(list)
    for index in range(len(functions)):
        steps = plan(functions.expression(index))
        codes = bytes([_CODES[name] for name, _ in steps])
        groups[tuple(operands for _, operands in steps)].append((codes, index))
    for operands, members in groups.items():
        members.sort()
        for start in range(0, len(members), _CHUNK):
            codes_of, indices = zip(*members[start : start + _CHUNK], strict=True)
            yield Batch(operands, codes_of, indices)


def _apply(codes: np.ndarray, operands: Sequence[Tensor]) -> Tensor:
    """Apply each row's own operator, given as (rows,) codes."""
    names, counts = np.unique(codes, return_counts=True)
    if len(names) == 1:
        return _FUNCTIONS[int(names[0])](*operands)
    order = torch.from_numpy(np.argsort(codes, kind="stable"))
    parts = [operand.index_select(0, order).split(counts.tolist()) for operand in operands]
    rows = zip(*parts, strict=True)
    results = [_FUNCTIONS[name](*row) for name, row in zip(names, rows, strict=True)]
    return torch.cat(results).index_select(0, torch.argsort(order))

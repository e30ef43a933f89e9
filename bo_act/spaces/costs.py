"""What an activation function costs at inference, from the times of its operators.

erf, arcsinh or a Bessel function take several times as long as ReLU. A function is evaluated
operator by operator, so its time is about the sum of theirs: 40 timings suffice for any space,
while timing 2,826 functions would take as long as many trainings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from bo_act.activations.evaluation import plan
from bo_act.activations.expressions import Expression
from bo_act.activations.operators import OPERATORS
from bo_act.spaces.catalogue import Catalogue

CHEAPEST = 1.0
"""Functions cheaper than ReLU count as equally cheap."""
_ELEMENTS = 2**18  # elements of a layer's output: 128 images, 32 channels, 8 x 8
_SECONDS = 0.02  # to time each operator


@torch.no_grad()
def operator_times(
    device: str | torch.device = "cpu", *, of: Iterable[Expression] | None = None
) -> dict[str, float]:
    """Time operators on standard normal numbers in float32, all of them in a few seconds.

    Args:
        device: where to time them.
        of: time only ReLU and the operators of these functions; None: all operators.

    Returns:
        Seconds for 262,144 elements, by operator: the median of runs of 20 ms in all, on one CPU
        thread or the GPU. N-ary operators have two arguments.
    """
    # Slow to import, and it warns on a machine with CUDA's compiler but no GPU.
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    log.setLevel(level)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, _ELEMENTS, device="cpu", dtype=torch.float32, generator=generator).to(
        device
    )
    names = set(OPERATORS)
    if of is not None:
        names = {"relu"}.union(*map(operators_of, of))
    times = {}
    for name in sorted(names):
        operator = OPERATORS[name]
        call = "f(x)" if operator.kind == "unary" else "f(x, y)"
        timer = Timer(call, globals={"f": operator.function, "x": x, "y": y}, num_threads=1)
        times[name] = timer.blocked_autorange(min_run_time=_SECONDS).median
    return times


def operators_of(function: Expression) -> set[str]:
    """Return the names of a function's operators."""
    return {name for name, _ in plan(function)}


def costs_of(catalogue: Catalogue, times: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the costs of the N functions of a catalogue in units of ReLU's, (N,).

    Args:
        catalogue: each function in its shortest spelling.
        times: of every operator, in any unit.
    """
    costs = [cost(catalogue.expression(index), times) for index in range(len(catalogue))]
    return np.array(costs, dtype=np.float64)


def cost(function: Expression, times: Mapping[str, float]) -> float:
    """Return the cost of a function in units of ReLU's, at least 1.

    Args:
        function: equal subtrees are computed once, and cost once.
        times: of every operator, in any unit. An n-ary operator of k arguments takes k - 1 times
            as long as one of two.
    """
    taken = sum(
        times[name] * (len(operands) - 1 if OPERATORS[name].kind == "nary" else 1)
        for name, operands in plan(function)
    )
    return max(taken / times["relu"], CHEAPEST)

"""K-FAC by loops over images, examples, targets and positions, each with gradients of its own.

And by ``bo_act``, with its options as keywords.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bo_act.fisher import kfac
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.kfac import KroneckerFactors
from bo_act.fisher.options import FisherOptions


def kronecker_factors(
    network: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    shared: InputFactorCache | None = None,
    **options: Any,
) -> KroneckerFactors:
    return kfac.kronecker_factors(
        network, inputs, targets, options=FisherOptions(**options), shared=shared
    )


def value(f: Tensor, target: Tensor, loss: str) -> Tensor:
    """The loss of one example, from its outputs (C,)."""
    if loss == "cross_entropy":
        return functional.cross_entropy(f[None], target.reshape(1))
    if loss == "mse":
        return 0.5 * (f - target).square().sum()
    return functional.binary_cross_entropy_with_logits(
        f, target.to(f.dtype).reshape(f.shape), reduction="sum"
    )


def predicted(f: Tensor, loss: str) -> list[tuple[float, Tensor]]:
    """Targets that the outputs (C,) of one example predict, with their probabilities."""
    f, count = f.detach(), len(f)
    if loss == "cross_entropy":
        return [(float(p), torch.tensor(c)) for c, p in enumerate(f.softmax(0))]
    if loss == "binary_cross_entropy":
        found = []
        for labels in product((0.0, 1.0), repeat=count):
            target = torch.tensor(labels, dtype=torch.float64)
            p = f.sigmoid()
            found.append((float((target * p + (1 - target) * (1 - p)).prod()), target))
        return found
    # Two points an axis have the mean and the covariance of the normal distribution.
    steps = count**0.5 * torch.eye(count, dtype=torch.float64)
    return [(0.5 / count, f + sign * step) for sign in (-1, 1) for step in steps]


def looped(
    network: nn.Module, layer: nn.Module, inputs: Any, targets: Tensor | None = None, *,
    loss: str, fisher: str,
) -> tuple[list[tuple[Tensor, Tensor]], int]:  # fmt: skip
    """What reaches a layer at each of its positions, image by image.

    Returns:
        the layer's input x at each position of each image, with the gradients (draws, q) there,
        each weighted by the root of its probability; and the number of images.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    batch = len(next(iter(inputs.values() if isinstance(inputs, dict) else inputs)))
    found = []
    for b in range(batch):
        seen.clear()
        hook = layer.register_forward_hook(lambda *call: seen.append((call[1][0], call[2])))
        if isinstance(inputs, dict):
            y = network(**{name: one[b : b + 1] for name, one in inputs.items()})
        else:
            y = network(*(one[b : b + 1] for one in inputs))
        hook.remove()
        y = y if isinstance(y, Tensor) else y.logits
        f = y[0].reshape(-1, y.shape[-1] if y.dim() > 1 else 1)
        t = None if targets is None else targets[b].reshape(len(f), -1).squeeze(1)
        kept = [s for s in range(len(f)) if t is None or t.dim() > 1 or t[s] != -100]
        if fisher == "empirical":
            draws = [(1.0, sum(value(f[s], t[s], loss) for s in kept))]
        else:
            draws = [
                (p, value(f[s], target, loss)) for s in kept for p, target in predicted(f[s], loss)
            ]
        parts = [
            torch.autograd.grad(drawn * p**0.5, [y for _, y in seen], retain_graph=True)
            for p, drawn in draws
        ]
        for call, (x, out) in enumerate(seen):
            rows = out[0].reshape(-1, out.shape[-1]).shape[0]
            ds = torch.stack([part[call][0].reshape(rows, -1) for part in parts], dim=1)
            found += list(
                zip(x[0].detach().reshape(rows, *x.shape[out.dim() - 1 :]), ds, strict=True)
            )
    return found, batch


def factors(network: nn.Module, layer: nn.Module, *arguments: Any, **options: Any) -> Any:
    """Both factors of a linear layer with a bias, (p, p) and (q, q)."""
    found, batch = looped(network, layer, *arguments, **options)
    rows = [torch.cat([x, torch.ones(1, dtype=x.dtype)]) for x, _ in found]
    a = sum(torch.outer(row, row) for row in rows) / len(rows)
    g = sum(torch.outer(d, d) for _, ds in found for d in ds) / batch
    return a, g

"""Kronecker factors of a network's Fisher matrix, one pair a layer (K-FAC).

The block of one layer's weights is approximated as F ≈ A ⊗ G. Symbols, with shapes:

    B   images in the batch
    C   classes
    T   positions at which one image uses the layer's weights, over all calls of the layer: 1 for
        a linear layer on (B, features), the tokens, or the output pixels of a convolution
    k   groups of a convolution, each with a block of its own; 1 for everything else
    p   weights of one output in one group, and one more for its bias
    q   outputs of one group
    x   (p,) one position's input or patch, in the order of the weight, with 1 at the end for the
        bias where the layer has one
    d   (q,) gradient of one image's loss with respect to the layer's output at one position
    A   (k, p, p) input factor, G (k, q, q) output-gradient factor

    A = 1/(B·T) · sum over images and positions of x xᵀ
    G = 1/B     · sum over images and positions of E[d dᵀ]

This is Martens and Grosse 2015 (arXiv 1503.05671, eq. 1) for T = 1 and the treatment of Grosse and
Martens 2016 (arXiv 1602.01407, theorem 1) for convolutions; they write A as a sum over positions
and G as a mean, which is the same product. Eschenhagen et al. 2023 (arXiv 2311.00636) call it
K-FAC-expand and use it for every layer that shares weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bo_act.errors import FeatureError, nearest
from bo_act.features.kfac_layer import COVERED, LayerFactors, LayerTrace

__all__ = ["Fisher", "KroneckerFactors", "LayerFactors", "kronecker_factors"]

Fisher = Literal["mc", "exact", "empirical"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class KroneckerFactors:
    """The factors of all covered layers.

    Attributes:
        layers: covered layers, in the order of ``network.named_modules()``.
        uncovered: names of modules that hold parameters which belong to no block. The affine
            parameters of norm layers are left out of the Fisher matrix and not named.
    """

    layers: tuple[LayerFactors, ...]
    uncovered: tuple[str, ...]


def kronecker_factors(
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    *,
    fisher: Fisher = "mc",
    seed: int = 0,
) -> KroneckerFactors:
    """Compute the Kronecker factors of every ``Linear`` and ``Conv2d`` layer of a network.

    The formulas are at the head of the module; the loss is the cross-entropy. Norm layers that
    keep running statistics use those of the batch, and leave the running ones as they are; the
    rest of the network is in evaluation mode, so that dropout and its relatives do nothing. With
    batch statistics, d contains what an image does to the losses of the others. The network's
    modes, buffers, hooks and gradients are left as they were, and so is the global random state.

    Args:
        network: maps (B, ...) images to (B, C) logits.
        images: (B, ...), of the network's dtype and on its device.
        labels: (B,) integers in [0, C); used by ``empirical`` alone, else may be None.
        fisher: where the labels in E[d dᵀ] come from: one drawn for each image from the
            network's prediction (``mc``), all of them weighted by it (``exact``, C backward
            passes), or the true ones (``empirical``).
        seed: of the drawn labels.

    Raises:
        FeatureError: the arguments do not fit together, no layer is covered, or a value of the
            forward or backward pass is not finite (the message names the layer).
    """
    if fisher not in get_args(Fisher):
        known = get_args(Fisher)
        raise FeatureError(
            f"expected fisher to be one of {', '.join(known)}, got {fisher!r}"
            f"{nearest(str(fisher), known)}"
        )
    batch = images.shape[0] if images.dim() else 0
    if batch == 0:
        raise FeatureError(f"expected a batch of images, got shape {tuple(images.shape)}")
    traces = {
        module: LayerTrace(name or "(root)", module)
        for name, module in network.named_modules()
        if isinstance(module, COVERED)
    }
    with _borrowed(network), torch.enable_grad():
        handles = [
            module.register_forward_hook(trace.forward, with_kwargs=True)
            for module, trace in traces.items()
        ]
        try:
            logits = network(images.detach().clone())  # it may change its input in place
        finally:
            for handle in handles:
                handle.remove()
        _check_logits(logits, batch)
        covered = [trace for trace in traces.values() if trace.covered]
        if not covered:
            raise FeatureError(_nothing_covered(network))
        vectors = _logit_gradients(logits, labels, fisher, seed)
        _backward(logits, vectors, covered)

    names = {trace.name for trace in covered}
    return KroneckerFactors(
        layers=tuple(trace.factors(batch) for trace in covered),
        uncovered=tuple(
            name or "(root)"
            for name, module in network.named_modules()
            if (name or "(root)") not in names
            and not isinstance(module, NORMS)
            and any(True for _ in module.parameters(recurse=False))
        ),
    )


@contextmanager
def _borrowed(network: nn.Module) -> Iterator[None]:
    """Put a network into the mode described in ``kronecker_factors``, and back at the end."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer)
        for module, _ in modes
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for module, _ in modes:
            module.training = isinstance(module, _NormBase)
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())  # the network works on copies
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        for module, mode in modes:
            module.training = mode


def _logit_gradients(
    logits: Tensor, labels: Tensor | None, fisher: Fisher, seed: int
) -> list[Tensor]:
    """Return (B, C) gradients of the loss with respect to the logits, one for each backward pass.

    Computed on the CPU, so that a seed draws the same labels on every device, and in float64,
    because p - 1 of a saturated prediction cancels.
    """
    p = logits.detach().cpu().double().softmax(dim=1)
    if fisher == "exact":
        # The sum over c of p_c (p - e_c)(p - e_c)ᵀ is E[d dᵀ] at the logits.
        steps = (p.unsqueeze(0) - torch.eye(p.shape[1]).unsqueeze(1).double()) * p.T.sqrt()[
            ..., None
        ]
        return list(steps.to(logits))
    if fisher == "mc":
        chosen = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))
    else:
        chosen = _checked_labels(labels, p)
    return [(p - torch.zeros_like(p).scatter_(1, chosen, 1.0)).to(logits)]


def _backward(logits: Tensor, vectors: list[Tensor], traces: list[LayerTrace]) -> None:
    """Ask for the gradients of layer outputs alone: no weight gradient is computed."""
    owners = [trace for trace in traces for _ in trace.edges]
    edges = [edge for trace in traces for edge in trace.edges]
    for index, vector in enumerate(vectors):
        gradients = torch.autograd.grad(
            logits,
            edges,
            grad_outputs=vector,
            retain_graph=index + 1 < len(vectors),
            allow_unused=True,
        )
        for trace, gradient in zip(owners, gradients, strict=True):
            if gradient is not None:
                trace.backward(gradient)


def _check_logits(logits: object, batch: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != batch:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise FeatureError(f"expected logits of shape ({batch}, classes), got {came}")
    if not bool(logits.detach().isfinite().all()):
        raise FeatureError("not finite in the forward pass at the logits")
    if not logits.requires_grad:
        raise FeatureError("the logits are cut from the graph (torch.no_grad in the network?)")


def _checked_labels(labels: Tensor | None, p: Tensor) -> Tensor:
    batch, classes = p.shape
    if labels is None or labels.shape != (batch,) or labels.is_floating_point():
        came = "None" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise FeatureError(f"expected {batch} integer labels for the empirical Fisher, got {came}")
    labels = labels.detach().cpu().long()
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise FeatureError(
            f"expected labels in [0, {classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.unsqueeze(1)


def _nothing_covered(network: nn.Module) -> str:
    found = sorted(
        {
            type(module).__name__
            for module in network.modules()
            if any(True for _ in module.parameters(recurse=False))
        }
    )
    return (
        "the network has no layer to compute a Fisher matrix of: expected a Linear or Conv2d that "
        f"the forward pass calls, got layers of the types {', '.join(found) or '(none)'}"
    )

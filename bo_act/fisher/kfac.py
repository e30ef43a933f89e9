"""Kronecker factors of a network's Fisher matrix, one pair a layer (K-FAC).

The block of one layer's weights is approximated as F ≈ A ⊗ G. Symbols, with shapes:

    B   images in the batch, or rows of a table, or token sequences: the first dimension of the
    inputs C   classes
    T   uses of the layer's weights per image ("positions"), over all calls of the layer: 1 for
        a linear layer on (B, features), the tokens, or the output pixels of a convolution
    k   groups of a convolution, each with its own block; 1 for other layers
    p   weights of one output in one group, including its bias
    q   outputs of one group
    x   (p,) one position's input or patch, in the order of the weight, with 1 at the end for the
        bias where the layer has one
    d   (q,) gradient of one image's loss with respect to the layer's output at one position; if
    tokens have outputs, the image's loss is their sum A   (k, p, p) input factor, G (k, q, q)
    output-gradient factor

    A = 1/(B·T) · sum over images and positions of x xᵀ
    G = 1/B     · sum over images and positions of E[d dᵀ]

This is Martens and Grosse 2015 (arXiv 1503.05671, eq. 1) for T = 1 and the treatment of Grosse and
Martens 2016 (arXiv 1602.01407, theorem 1) for convolutions; they write A as a sum over positions
and G as a mean, which is the same product. Eschenhagen et al. 2023 (arXiv 2311.00636) call it
K-FAC-expand and use it for all layers with shared weights. Their other setting, K-FAC-reduce, sums
over an image's positions first, and is exact for linear networks with a final mean:

    A = 1/B · sum over images of x̄ x̄ᵀ,       x̄ = mean over positions of x
    G = 1/B · sum over images of E[d̄ d̄ᵀ],    d̄ = sum over positions of d

For outputs (B, T', V), one distribution for each of an image's T' tokens, the targets of these are
independent given the image. So in E[d dᵀ] the gradients of two tokens' losses do not mix,

    E[d dᵀ] = sum over tokens s of E[d_s d_sᵀ],   d_s = gradient of the loss of token s,

which ``exact`` sums up in T'·C backward passes. ``mc`` draws all tokens' targets and takes the
gradient of the sum of their losses: its mean over draws is the same. ``empirical`` has no
expectation: d is the gradient of that sum at the true targets, and gradients of tokens do mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import FeatureError
from bo_act.fisher.borrowed import borrowed, explained, inside, named_layers
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.calls import (
    Inputs,
    Targets,
    as_examples,
    batch_size,
    call,
    logits_of,
    taken,
    tensors,
)
from bo_act.fisher.layers.attention import AttentionTrace
from bo_act.fisher.layers.embeddings import EmbeddingTrace
from bo_act.fisher.layers.norms import NormTrace, normalizes
from bo_act.fisher.layers.patches import Convolution
from bo_act.fisher.layers.trace import LayerFactors, Trace
from bo_act.fisher.layers.weights import CONVOLUTIONS, WeightTrace, weighted
from bo_act.fisher.loss import output_gradients
from bo_act.fisher.options import FisherOptions, Sharing, Statistics

__all__ = [
    "KroneckerFactors",
    "LayerFactors",
    "kronecker_factors",
    "refuse_randomness",
]


@dataclass(frozen=True)
class KroneckerFactors:
    """The factors of all covered layers.

    Attributes:
        layers: covered layers, in the order of ``network.named_modules()``.
        uncovered: names of layers and parameters without a block, or with a null block because
            they get no gradient (``detach``, ``torch.no_grad``).
    """

    layers: tuple[LayerFactors, ...]
    uncovered: tuple[str, ...]


@plain_torch()
def kronecker_factors(
    network: nn.Module,
    inputs: Inputs,
    targets: Targets | None = None,
    *,
    options: FisherOptions | None = None,
    shared: InputFactorCache | None = None,
) -> KroneckerFactors:
    """Compute the Kronecker factors of every supported layer of a network.

    Those are linear layers and convolutions, embeddings (``EmbeddingTrace``), the projections of
    ``nn.MultiheadAttention``, and the scale and shift of normalization layers (``NormTrace``). An
    embedding and a linear layer that share a weight have a block each, with the weight in both. The
    formulas are at the head of the module. With batch statistics, d includes an image's effect on
    the losses of the others. The rest of the network is in evaluation mode, so dropout does
    nothing. Modes, buffers, hooks and gradients of the network and the global random state stay
    unchanged. Compiled code runs uncompiled, and layers in ``nn.DataParallel`` have the names of
    the inner network.

    Args:
        network: as for ``fim_spectra``, and so are the next three.
        inputs: one batch.
        targets: of the predictions, or None.
        options: default: ``FisherOptions()``.
        shared: cache of the input factors that networks share on the same images.

    Raises:
        FeatureError: the arguments do not fit together, no layer is covered, the network hides its
            layers or changes in place what its gradients need, or a value of the forward or
            backward pass is not finite (the message names the layer).
    """
    options = options or FisherOptions()
    network = inside(network)
    inputs = taken(inputs, network)
    batch = batch_size(inputs)
    hooked, attentions = _traces(network, batch, options.weight_sharing, shared)
    with borrowed(network, options.statistics, attentions), explained(network, inputs):
        handles = [
            module.register_forward_hook(trace.hook, with_kwargs=True)
            for module, trace in hooked.items()
        ]
        try:
            outputs = call(network, inputs)
        finally:
            for handle in handles:
                handle.remove()
        examples = as_examples(outputs, targets, batch)
        traces = _covered(network, hooked, attentions)
        if not any(isinstance(trace, WeightTrace) for trace in traces):
            raise FeatureError(_nothing_covered(network))
        vectors = output_gradients(examples.logits, examples.targets, options)
        # Gradients of several tokens would add up within an image, so each token has its own pass.
        masks = examples.masks() if options.fisher == "exact" else [None]
        passes = [(vector, mask) for mask in masks for vector in vectors]
        _backward(examples.logits, passes, traces)
    reached = {trace.name for trace in traces if trace.reached}
    return KroneckerFactors(
        layers=tuple(trace.factors() for trace in traces),
        uncovered=_uncovered(network, hooked, reached),
    )


@plain_torch()
def refuse_randomness(network: nn.Module, inputs: Inputs, *, statistics: Statistics) -> None:
    """Refuse a network whose outputs differ from one forward pass to the next.

    Raises:
        FeatureError: they do.
    """
    network = inside(network)
    inputs = taken(inputs, network)
    batch_size(inputs)  # check only
    devices = {tensor.device for tensor in tensors(inputs) if tensor.is_cuda}
    with (
        borrowed(network, statistics, {}),
        explained(network, inputs),
        torch.no_grad(),
        torch.random.fork_rng(list(devices)),
    ):
        first, second = (logits_of(call(network, inputs)) for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise FeatureError(
            "two forward passes of the same network on the same batch give different outputs (by "
            f"up to {float((first - second).abs().max()):.3g}), so its Fisher matrix would change "
            "from call to call: something in it draws random numbers in evaluation mode. Look for "
            "functional.dropout without training=self.training, and for layers that add noise"
        )


# --- the network's layers -------------------------------------------------------------------


def _traces(
    network: nn.Module, batch: int, sharing: Sharing, shared: InputFactorCache | None
) -> tuple[dict[nn.Module, Trace], dict[nn.MultiheadAttention, AttentionTrace]]:
    """Return the traces of hooked layers, and of attention modules."""
    hooked: dict[nn.Module, Trace] = {}
    attentions: dict[nn.MultiheadAttention, AttentionTrace] = {}

    def linear(name: str, biased: bool) -> WeightTrace:
        return WeightTrace(name, batch, biased=biased, sharing=sharing, shared=shared)

    tied: dict[object, WeightTrace] = {}
    same: object
    for name, module in named_layers(network):
        label = name or "(root)"
        if isinstance(module, nn.Embedding):
            same = (nn.Embedding, id(module.weight), module.padding_idx)
            hooked[module] = tied.setdefault(same, EmbeddingTrace(label, batch, module))
        elif weighted(module):
            convolution = Convolution.of(module) if isinstance(module, CONVOLUTIONS) else None
            # Layers with the same parameters and options count as calls of one layer.
            way = convolution or isinstance(module, nn.Linear)
            same = (way, id(module.weight), id(module.bias))
            if same in tied:
                hooked[module] = tied[same]
                continue
            hooked[module] = tied[same] = WeightTrace(
                label,
                batch,
                biased=module.bias is not None,
                convolution=convolution,
                sharing=sharing,
                shared=shared,
            )
        elif isinstance(module, nn.MultiheadAttention):
            if type(module).forward is nn.MultiheadAttention.forward:
                attentions[module] = AttentionTrace(label, module, linear)
        elif normalizes(module):
            hooked[module] = NormTrace(label, batch, module)
    return hooked, attentions


def _covered(
    network: nn.Module,
    hooked: dict[nn.Module, Trace],
    attentions: dict[nn.MultiheadAttention, AttentionTrace],
) -> list[Trace]:
    """Return the traces of called layers, in the order of the network."""
    traces: dict[Trace, None] = {}
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention) and module in attentions:
            traces |= dict.fromkeys(attentions[module].parts)
        elif module in hooked:
            traces[hooked[module]] = None
    return [trace for trace in traces if trace.covered]


def _uncovered(
    network: nn.Module, hooked: dict[nn.Module, Trace], covered: set[str]
) -> tuple[str, ...]:
    """Return the names of modules and parameters without a block."""
    names = []
    inside: set[nn.Module] = set()  # parts of covered attention modules
    for name, module in named_layers(network):
        label = hooked[module].name if module in hooked else name or "(root)"
        if isinstance(module, nn.MultiheadAttention) and f"{label}.out_proj" in covered:
            inside.add(module.out_proj)
            names += [f"{label}.{extra}" for extra in ("bias_k", "bias_v")
                      if getattr(module, extra) is not None]  # fmt: skip
        elif label not in covered and module not in inside and _has_parameters(module):
            # Of a module with parts, list its own parameters.
            own = [entry for entry, _ in module.named_parameters(name, recurse=False)]
            names += own if any(module.children()) or not name else [name]
    return tuple(names)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _backward(
    logits: Tensor, passes: Sequence[tuple[Tensor, Tensor | None]], traces: Sequence[Trace]
) -> None:
    """Compute the gradients of layer outputs only, without weight gradients.

    Args:
        logits: (N, C).
        passes: gradients (N, C) with respect to them, and a mask of examples (N, 1); None for all.
        traces: of the layers.
    """
    edges = [edge for trace in traces for edge in trace.edges]
    for index, (vector, mask) in enumerate(passes):
        try:
            gradients = torch.autograd.grad(
                logits,
                edges,
                grad_outputs=vector if mask is None else vector * mask.to(vector.device),
                retain_graph=index + 1 < len(passes),
                allow_unused=True,
            )
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            raise FeatureError(
                "the network uses torch.utils.checkpoint with use_reentrant=True, which hides the "
                "layers inside from the Fisher matrix; use use_reentrant=False (for Hugging Face "
                "models: gradient_checkpointing_disable())"
            ) from error
        remaining = iter(gradients)
        for trace in traces:
            arrived = [next(remaining) for _ in trace.edges]
            trace.reached |= any(gradient is not None for gradient in arrived)
            trace.backward(arrived)


def _nothing_covered(network: nn.Module) -> str:
    types = sorted(
        {type(module).__name__ for module in network.modules() if _has_parameters(module)}
    )
    return (
        "the network has no layer to compute a Fisher matrix of: expected a linear layer, a "
        "convolution, an embedding or nn.MultiheadAttention that the forward pass calls, got "
        "layers of the types "
        f"{', '.join(types) or '(none)'}"
    )

"""``nn.MultiheadAttention`` as the four linear layers that it is.

The module multiplies by its weights without calling layers, so hooks do not see them. While it is
traced, this forward pass replaces it: the same projections as separate layers, with torch's own
attention between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.dependencies.torch_internals import has_one_weight
from bo_act.fisher.layers.weights import WeightTrace

__all__ = ["PARTS", "AttentionTrace"]

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


class AttentionTrace:
    """The projections of one attention module, each with its own block.

    Args:
        name: of the module.
        module: with any of its options; in evaluation mode.
        make: returns the trace of a linear layer, given its name and whether it has a bias.
    """

    def __init__(
        self,
        name: str,
        module: nn.MultiheadAttention,
        make: Callable[[str, bool], WeightTrace],
    ) -> None:
        self.module = module
        biased = (module.in_proj_bias is not None,) * 3 + (module.out_proj.bias is not None,)
        self.parts = [
            make(f"{name}.{part}", bias) for part, bias in zip(PARTS, biased, strict=True)
        ]
        self.attend = _bare(module)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the module's own forward pass."""
        module = self.module
        if has_one_weight(module):
            weights = list(module.in_proj_weight.chunk(3))
        else:
            weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        biases: list[Tensor | None] = [None] * 3
        if module.in_proj_bias is not None:
            biases = list(module.in_proj_bias.chunk(3))
        projected = [
            self._project(part, x, weight, bias)
            for part, (x, weight, bias) in enumerate(
                zip((query, key, value), weights, biases, strict=True)
            )
        ]
        mixed, shares = self.attend(*projected, *args, **kwargs)
        out = module.out_proj
        return self._project(3, mixed, out.weight, out.bias), shares

    def _project(self, part: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = nn.functional.linear(x, weight, bias)
        # Traces expect images in the first dimension.
        turned = x.dim() == 3 and not self.module.batch_first
        if turned:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        seen = self.parts[part].see(x, y)
        y = y if seen is None else seen
        return y.transpose(0, 1) if turned else y


def _bare(module: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """Return the same attention with identity projections."""
    # On the meta device, so that its unused weights draw no random numbers.
    bare = nn.MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        bias=False,
        add_zero_attn=module.add_zero_attn,
        batch_first=module.batch_first,
        device="meta",
    ).eval()
    unit = torch.eye(module.embed_dim, device="cpu", dtype=torch.float32).to(module.out_proj.weight)
    bare.in_proj_weight = nn.Parameter(unit.repeat(3, 1), requires_grad=False)
    bare.out_proj.weight = nn.Parameter(unit, requires_grad=False)
    bare.bias_k, bare.bias_v = module.bias_k, module.bias_v
    return bare

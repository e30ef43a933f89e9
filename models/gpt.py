"""Small GPT: a transformer that predicts the next token, with the activation in its MLPs.

Each token and its position have an embedding, which are added; then blocks follow, each
x + attention(norm(x)) and x + MLP(norm(x)), in which a token sees itself and those before; then
layer normalization and a linear layer without bias to the logits of the vocabulary.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), with its
initial weights: deviation 0.02, divided by the root of the number of residual branches for what
leads into the sum. Sizes are ours: a model for characters that learns on a CPU.

Parameters: 117,376 for 103 characters and 64 of them at a time.

Options:
    depth: blocks (default 2).
    width: numbers of a token (default 64).
    heads: attention heads, of which the width is a multiple (default 4).
    mlp_ratio: hidden units of an MLP for each number of a token (default 4).
    dropout: share of the numbers that each branch drops in training (default 0).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.into(x).chunk(3, -1)
        )
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Block(nn.Module):
    def __init__(
        self,
        activation: Callable[[], nn.Module],
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.into, self.activation, self.out = (
            nn.Linear(width, hidden),
            activation(),
            nn.Linear(hidden, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x)))
        y = self.out(self.activation(self.into(self.mlp_norm(x))))
        out: Tensor = x + self.dropout(y)
        return out


class GPT(nn.Module):
    def __init__(
        self, vocabulary: int, context: int, width: int, blocks: list[nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        deviation = 0.02
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                branch = name.endswith(".out")
                nn.init.normal_(
                    module.weight, std=deviation / math.sqrt(2 * len(blocks) if branch else 1)
                )
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # A position for each token, so that it shows in the Fisher matrix whose it is.
        x = self.dropout(self.tokens(tokens) + self.positions(places.expand_as(tokens)))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def build(
    activation: Callable[[], nn.Module],
    *,
    vocabulary: int,
    context: int,
    depth: int = 2,
    width: int = 64,
    heads: int = 4,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """Return the network, from tokens (b, context) to logits (b, context, vocabulary)."""
    if width % heads:
        raise ValueError(f"expected a width that is a multiple of {heads} heads, got {width}")
    blocks: list[nn.Module] = [
        Block(activation, width, heads, mlp_ratio * width, dropout) for _ in range(depth)
    ]
    return GPT(vocabulary, context, width, blocks, dropout)

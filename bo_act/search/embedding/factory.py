"""Embedders by name."""

from __future__ import annotations

from bo_act.activations.derivatives import Functions
from bo_act.search.embedding.embedding import Embedder, PcaEmbedder
from bo_act.search.embedding.umap import UmapEmbedder
from bo_act.specs import EmbeddingSpec


def make_embedder(spec: EmbeddingSpec, functions: Functions | None = None) -> Embedder:
    """Return the embedder of a spec.

    Args:
        spec: the embedder.
        functions: of the table to embed, for embedders that evaluate them.
    """
    if spec.name == "umap":
        return UmapEmbedder(seed=spec.seed, functions=functions)
    return PcaEmbedder(outputs=spec.outputs, fim=spec.fim)

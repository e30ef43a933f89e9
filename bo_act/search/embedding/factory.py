"""Embedders by name."""

from __future__ import annotations

from bo_act.search.embedding.embedding import Embedder, PcaEmbedder
from bo_act.search.embedding.umap import UmapEmbedder
from bo_act.specs import EmbeddingSpec


def make_embedder(spec: EmbeddingSpec) -> Embedder:
    """Return the embedder that a spec names."""
    if spec.name == "umap":
        return UmapEmbedder(seed=spec.seed)
    return PcaEmbedder(outputs=spec.outputs, fim=spec.fim)

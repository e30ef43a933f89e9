"""The published embedding: two UMAP graphs, united, and laid out by a seed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import parse
from bo_act.comparison.job import with_own_layout
from bo_act.errors import SearchError
from bo_act.features.act_bench import bins, edges
from bo_act.features.compute import compute_features
from bo_act.features.table import Block, FeatureTable
from bo_act.search.embedding.factory import make_embedder
from bo_act.search.embedding.umap import UmapEmbedder, weighted_spectra
from bo_act.search.method import METHODS
from bo_act.spaces.space import Space, load_space
from bo_act.specs import EmbeddingSpec, SpaceSpec

SPEC = SpaceSpec(
    name="small",
    schemas=("binary(unary(x),unary(x))", "unary(unary(x))"),
    unary=("tanh", "relu", "sigmoid", "erf", "softplus", "abs"),
    binary=("add", "mul", "max"),
)


@pytest.fixture(scope="module")
def table() -> FeatureTable:
    return compute_features(Space(SPEC))


def with_spectra(table: FeatureTable) -> FeatureTable:
    generator = np.random.default_rng(0)
    outputs = table.blocks["outputs"]
    shift = np.nan_to_num(outputs.values[:, [100]])
    values = np.sort(generator.normal(shift, 1.0, (len(table), 32)), axis=1).astype(np.float32)
    reasons = list(outputs.reasons)
    reasons[5], values[5] = "no gradient", np.nan
    return FeatureTable(
        table.catalogue_hash, {**table.blocks, "fim": Block(values, tuple(reasons))}
    )


def in_one_square(places: np.ndarray) -> np.ndarray:
    """Scale by one factor: neighbours stay neighbours."""
    return (places - places.min(axis=0)) / np.ptp(places, axis=0).max()


@pytest.mark.slow
def test_umap_is_the_union_of_two_graphs(table):
    """As umap-learn adds them, whose sum has the random state 42 whatever was asked for."""
    from umap import UMAP

    spectra = with_spectra(table)
    embedding = make_embedder(EmbeddingSpec(name="umap", seed=42)).fit(spectra)
    assert embedding.points.shape == (len(table), 2)
    assert not embedding.valid[5]
    valid = embedding.points[embedding.valid]
    rows = np.flatnonzero(embedding.valid)
    outputs = np.sinh(spectra.blocks["outputs"].values[rows].astype(float))
    of_outputs = UMAP(random_state=42, n_jobs=1).fit(outputs)
    of_spectra = UMAP(metric="manhattan", n_neighbors=3, random_state=42, n_jobs=1).fit(
        spectra.blocks["fim"].values[rows]
    )
    joined = (of_outputs + of_spectra).embedding_
    np.testing.assert_allclose(valid, in_one_square(joined), atol=1e-6)
    without = make_embedder(EmbeddingSpec(name="umap", seed=42)).fit(table)
    assert without.valid.sum() == embedding.valid.sum() + 1
    np.testing.assert_allclose(
        without.points[without.valid],
        in_one_square(
            UMAP(random_state=42, n_jobs=1)
            .fit(np.sinh(table.blocks["outputs"].values[without.valid].astype(float)))
            .embedding_
        ),
        atol=1e-6,
    )


@pytest.mark.slow  # Numba compiles UMAP for ten seconds
def test_a_seed_is_a_layout_of_its_own(table):
    spectra = with_spectra(table)
    one, again, other = (
        make_embedder(EmbeddingSpec(name="umap", seed=seed)).fit(spectra) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.points, again.points)
    inside = one.valid
    apart = [cdist(e.points[inside], e.points[inside]) for e in (one, other)]
    assert not np.allclose(*apart, atol=0.05)


def test_a_seed_of_a_comparison_is_that_of_a_search():
    published = METHODS["published"]
    assert with_own_layout(published, 1) != with_own_layout(published, 2)
    assert with_own_layout(METHODS["default"], 1) is METHODS["default"]


def test_layers_weigh_as_much_as_they_have_bins_in_released_vectors(table):
    """For made-up eigenvalues, the distances are those of vectors in the released layout."""
    generator = np.random.default_rng(0)
    counts = (40_000, 8_000, 150)  # weights of three layers, the last of them without a bin
    logs = [[generator.normal(generator.normal(-20, 8), 6, n) for n in counts] for _ in range(6)]
    vectors, quantiles = [], []
    levels = (np.arange(400) + 0.5) / 400
    for layers in logs:
        parts = [np.histogram(one, edges(len(one)))[0].cumsum() / len(one) for one in layers[:2]]
        vectors.append(np.concatenate(parts))
        quantiles.append(np.concatenate([np.quantile(one, levels) for one in layers]))
    block = Block(np.array(quantiles, dtype=np.float32), ("",) * 6)
    known = FeatureTable("", {"fim": block}, {"bins": [bins(n) for n in counts]})
    ours = cdist(*[weighted_spectra(known)] * 2, "cityblock")
    theirs = cdist(vectors, vectors, "cityblock")
    off = ~np.eye(6, dtype=bool)
    assert np.corrcoef(ours[off], theirs[off])[0, 1] > 0.999
    alike = cdist(*[weighted_spectra(FeatureTable("", {"fim": block}))] * 2, "cityblock")
    assert np.corrcoef(alike[off], theirs[off])[0, 1] < 0.99


def test_outputs_are_those_for_clipped_normal_samples():
    space = load_space("classic")
    table = compute_features(space)
    found = UmapEmbedder(seed=3, functions=space.catalogue)._outputs(table)
    x = np.clip(np.random.default_rng(3).standard_normal(1_000), -5, 5)
    for text in ("relu(x)", "tanh(x)"):
        index = space.catalogue.index(text)
        expected = evaluate(parse(text), torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found[index], expected, atol=1e-12)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_umap_leaves_the_threads_of_torch_alone(tmp_path):
    """Numba sets them to all cores, and two processes on two cores were ten times slower."""
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from bo_act import compute_features, load_space\n"
        "from bo_act.search.embedding.umap import UmapEmbedder\n"
        "UmapEmbedder().fit(compute_features(load_space('classic')))\n"
        "assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=tmp_path)


def test_umap_needs_some_functions(table):
    few = {
        name: Block(block.values, ("x",) * (len(table) - 2) + ("", ""))
        for name, block in table.blocks.items()
    }
    for block in few.values():
        block.values[:-2] = np.nan
    with pytest.raises(SearchError, match="more than 3 functions"):
        make_embedder(EmbeddingSpec(name="umap")).fit(FeatureTable(table.catalogue_hash, few))

"""Embeddings, the surrogate against BoTorch's own, and the searcher as a pure function."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.decomposition import PCA

from bo_act.errors import SearchError
from bo_act.features import rank_pca as coordinates
from bo_act.features.outputs import output_blocks
from bo_act.features.table import NOT_COMPUTED, Block, FeatureTable
from bo_act.search.embedding import embedding as embedders
from bo_act.search.embedding.embedding import PcaEmbedder
from bo_act.search.embedding.factory import make_embedder
from bo_act.spaces.space import Space
from bo_act.specs import EmbeddingSpec, SpaceSpec

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")


# --- embeddings -----------------------------------------------------------------------------

ODD = ("identity", "negative", "tanh", "erf", "arctan", "softsign", "sinh", "bessel_i1e")
MIXED = ("zero", "one", "identity", "reciprocal", "exp", "relu", "swish", "softplus", "cosh")


def output_table(unary: tuple[str, ...], binary: tuple[str, ...]) -> FeatureTable:
    spec = SpaceSpec(
        name="t", unary=unary, binary=binary, schemas=("binary(unary(x),unary(x))", "unary(x)")
    )
    catalogue = Space(spec).catalogue
    return FeatureTable(catalogue.hash, output_blocks(catalogue))


def with_spectra(table: FeatureTable, layers: int = 3, quantiles: int = 16) -> FeatureTable:
    """Add made-up spectra: ascending, a different place and width in each layer; some missing."""
    rng = np.random.default_rng(0)
    rows = len(table)
    place = rng.normal(-8, 4, size=(rows, layers, 1))
    width = rng.uniform(0.5, 3, size=(rows, layers, 1))
    levels = norm.ppf((np.arange(quantiles) + 0.5) / quantiles)
    values = (place + width * levels).reshape(rows, -1).astype(np.float32)
    null = rng.uniform(size=(rows, layers)).astype(np.float32)
    reasons = list(table.blocks["outputs"].reasons)
    reasons[3] = reasons[3] or "eigenvalues do not converge"
    gone = np.array([bool(reason) for reason in reasons])
    values[gone], null[gone] = np.nan, np.nan
    blocks = {"fim": Block(values, tuple(reasons)), "fim_null": Block(null, tuple(reasons))}
    return replace(table, blocks={**table.blocks, **blocks})


def taken(table: FeatureTable, rows: np.ndarray) -> FeatureTable:
    """The same table with other rows."""
    blocks = {
        name: Block(block.values[rows], tuple(block.reasons[row] for row in rows))
        for name, block in table.blocks.items()
    }
    return replace(table, blocks=blocks)


def left_out(table: FeatureTable, rows: np.ndarray) -> FeatureTable:
    """The same table, without the spectra of some functions that could have one."""
    blocks = dict(table.blocks)
    for name in ("fim", "fim_null"):
        values, reasons = blocks[name].values.copy(), list(blocks[name].reasons)
        for row in rows:
            values[row] = np.nan
            reasons[row] = reasons[row] or NOT_COMPUTED
        blocks[name] = Block(values, tuple(reasons))
    return replace(table, blocks=blocks)


OUTPUTS = output_table(MIXED, ("add", "mul", "div"))
ODD_OUTPUTS = output_table(ODD, ("add", "sub"))
SPECTRA = with_spectra(OUTPUTS)


@pytest.mark.parametrize(("rows", "columns"), [(60, 25), (25, 60), (25, 25)])
def test_components_are_those_of_a_singular_value_decomposition(rows, columns):
    """Of many columns, as deep networks have, no covariance is made."""
    random = np.random.default_rng(rows)
    values = random.normal(size=(rows, 8)) * 2.0 ** -np.arange(8) @ random.normal(size=(8, columns))
    mean, found = coordinates._principal(np.arange(rows), lambda some: values[some], 5)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=1e-12)
    expected = np.linalg.svd(values - values.mean(axis=0))[2][:5].T
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-9)
    # No more than there are, also where a further one would be noise.
    assert coordinates._principal(np.arange(rows), lambda some: values[some], 20)[1].shape[1] == 8


class EmbedderContract:
    """What every embedder has to fulfil; a subclass names the embedder and the tables."""

    tables: tuple[FeatureTable, ...]
    blocks: tuple[str, ...]

    def embedder(self):
        raise NotImplementedError

    @pytest.fixture
    def table(self) -> FeatureTable:
        return self.tables[0]

    def test_points_are_in_the_unit_cube_and_the_rest_is_masked(self, table):
        embedding = self.embedder().fit(table)
        assert len(embedding) == len(table) == len(embedding.points)
        assert embedding.points.dtype == np.float64
        inside = embedding.points[embedding.valid]
        assert (inside >= 0).all()
        assert (inside <= 1).all()
        assert np.isnan(embedding.points[~embedding.valid]).all()
        assert 0 < embedding.valid.sum() < len(table)

    def test_only_functions_that_lack_no_feature_have_a_place(self, table):
        there = [block.present | block.left_out for block in table.blocks.values()]
        embedding = self.embedder().fit(table)
        np.testing.assert_array_equal(embedding.valid, np.all(there, axis=0))
        left = np.any([block.left_out for block in table.blocks.values()], axis=0)
        np.testing.assert_array_equal(embedding.imputed, np.flatnonzero(left))

    def test_chunks_change_nothing(self, table, monkeypatch):
        embedding = self.embedder().fit(table)
        monkeypatch.setattr(coordinates, "_CHUNK", 7)
        monkeypatch.setattr(embedders, "_CHUNK", 7)
        other = self.embedder().fit(table)
        np.testing.assert_allclose(other.points, embedding.points, atol=1e-12)

    def test_blocks_tile_the_columns(self, table):
        embedding = self.embedder().fit(table)
        assert tuple(embedding.blocks) == self.blocks
        covered = [i for block in embedding.blocks.values() for i in range(block.start, block.stop)]
        assert covered == list(range(embedding.points.shape[1]))

    def test_it_is_deterministic_and_leaves_the_table(self, table):
        before = table.hash
        one, other = (
            self.embedder().fit(table),
            self.embedder().fit(taken(table, np.arange(len(table)))),
        )
        np.testing.assert_array_equal(one.points, other.points)
        assert one.hash == other.hash
        assert FeatureTable(table.catalogue_hash, table.blocks).hash == before

    def test_the_order_of_rows_does_not_matter(self):
        for table in self.tables:
            embedding = self.embedder().fit(table)
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(len(table))
                other = self.embedder().fit(taken(table, order))
                np.testing.assert_allclose(other.points, embedding.points[order], atol=1e-12)

    def test_missing_rows_do_not_touch_the_others(self, table):
        embedding = self.embedder().fit(table)
        rows = np.flatnonzero(embedding.valid)
        alone = self.embedder().fit(taken(table, rows))
        assert alone.valid.all()
        np.testing.assert_allclose(alone.points, embedding.points[rows], atol=1e-12)

    def test_no_column_is_constant(self, table):
        embedding = self.embedder().fit(table)
        assert (np.ptp(embedding.points[embedding.valid], axis=0) > 0).all()
        moments = table.blocks["moments"]
        values = moments.values.copy()
        values[moments.present, 0] = 1.25
        blocks = {**table.blocks, "moments": Block(values, moments.reasons)}
        fewer = self.embedder().fit(replace(table, blocks=blocks))
        assert fewer.points.shape[1] < embedding.points.shape[1]
        assert (np.ptp(fewer.points[fewer.valid], axis=0) > 0).all()

    def test_the_hash_is_of_the_features(self, table):
        hashes = {self.embedder().fit(table).hash}
        for name in self.blocks:
            values = table.blocks[name].values.copy()
            first, *_, last = np.flatnonzero(table.blocks[name].present)
            values[[first, last]] = values[[last, first]]
            blocks = {**table.blocks, name: Block(values, table.blocks[name].reasons)}
            hashes.add(self.embedder().fit(replace(table, blocks=blocks)).hash)
        assert len(hashes) == 1 + len(self.blocks)

    def test_nothing_to_embed(self, table):
        gone = tuple("gone" for _ in range(len(table)))
        blocks = {n: Block(np.full_like(b.values, np.nan), gone) for n, b in table.blocks.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SearchError, match="there is nothing to embed"):
                self.embedder().fit(replace(table, blocks=blocks))


class TestPcaOfOutputs(EmbedderContract):
    tables = (OUTPUTS, ODD_OUTPUTS)
    blocks = ("outputs",)

    def embedder(self):
        return PcaEmbedder()

    def test_components(self):
        for count in (1, 3):
            embedding = PcaEmbedder(outputs=count).fit(OUTPUTS)
            assert embedding.points.shape[1] == 4 + count  # moments, components

    def test_it_is_sklearns_pca_by_rank(self):
        embedding = PcaEmbedder(outputs=3).fit(OUTPUTS)
        valid = embedding.valid
        values = np.sinh(OUTPUTS.blocks["outputs"].values[valid].astype(np.float64))
        deviation = values.std(axis=1, keepdims=True)
        centred = values - values.mean(axis=1, keepdims=True)
        shape = np.where(deviation > 1e-6, centred / np.maximum(deviation, 1e-6), 0)
        assert_ranks_up_to_sign(embedding.points[valid, 4:], PCA(3).fit_transform(shape))
        moments = OUTPUTS.blocks["moments"].values[valid].astype(np.float64)
        for column in range(4):
            assert_ranks_up_to_sign(
                embedding.points[valid, column : column + 1], moments[:, [column]], sign=False
            )

    def test_ranks_do_not_feel_how_far_the_far_away_are(self):
        points = PcaEmbedder().fit(OUTPUTS).points
        points = points[~np.isnan(points).any(axis=1)]
        assert points.min() >= 0.5 / len(points) - 1e-12
        assert points.max() <= 1 - 0.5 / len(points) + 1e-12
        np.testing.assert_allclose(points.mean(axis=0), 0.5)


class TestPcaWithSpectra(EmbedderContract):
    tables = (SPECTRA, with_spectra(ODD_OUTPUTS))
    blocks = ("outputs", "fim")

    def embedder(self):
        return PcaEmbedder(outputs=4, fim=4)

    def test_it_is_sklearns_pca_by_rank(self):
        embedding = PcaEmbedder(fim=4).fit(SPECTRA)
        valid = SPECTRA.blocks["fim"].present
        quantiles = SPECTRA.blocks["fim"].values[valid].astype(np.float64)
        columns = embedding.points[valid][:, embedding.blocks["fim"]]
        assert_ranks_up_to_sign(columns, PCA(4).fit_transform(quantiles))


THIRD = np.arange(0, len(SPECTRA), 3)
PARTIAL = left_out(SPECTRA, THIRD)


class TestPcaWithSpectraLeftOut(EmbedderContract):
    tables = (PARTIAL, left_out(with_spectra(ODD_OUTPUTS), np.arange(0, len(ODD_OUTPUTS), 2)))
    blocks = ("outputs", "fim")

    def embedder(self):
        return PcaEmbedder(outputs=4, fim=4)

    def test_functions_with_a_spectrum_lie_where_they_would_without_the_others(self):
        known = np.setdiff1d(np.arange(len(PARTIAL)), THIRD)
        embedding = self.embedder().fit(PARTIAL)
        alone = self.embedder().fit(taken(PARTIAL, known))
        fim = embedding.points[:, embedding.blocks["fim"]]
        np.testing.assert_array_equal(fim[known], alone.points[:, alone.blocks["fim"]])
        # … and all of them have the very outputs they have with all spectra.
        outputs = embedding.points[:, embedding.blocks["outputs"]]
        np.testing.assert_array_equal(outputs, self.embedder().fit(SPECTRA).points[:, :8])

    def test_the_rest_lie_where_a_loop_puts_them(self):
        embedding = self.embedder().fit(PARTIAL)
        outputs, fim = (embedding.points[:, columns] for columns in embedding.blocks.values())
        known = np.flatnonzero(PARTIAL.blocks["fim"].present)
        assert len(embedding.imputed) > 20
        for row in embedding.imputed:
            distances = np.linalg.norm(outputs[known] - outputs[row], axis=1)
            nearest = np.argsort(distances)[:24]
            radius = distances[nearest[-1]]
            weights = ((radius - distances[nearest]) / (radius * distances[nearest])) ** 2
            weights /= weights.sum()
            np.testing.assert_allclose(fim[row], weights @ fim[known[nearest]], atol=1e-4)

    def test_a_twin_decides_alone(self):
        rows = np.flatnonzero(SPECTRA.blocks["fim"].present)
        twice = left_out(taken(SPECTRA, np.concatenate([rows, rows[:9]])), [0, 2])
        embedding = self.embedder().fit(twice)
        np.testing.assert_allclose(embedding.points[[0, 2]], embedding.points[[-9, -7]], atol=1e-6)

    @pytest.mark.parametrize("known", [0, 1, 2])
    def test_hardly_any_spectrum(self, known):
        rows = np.flatnonzero(SPECTRA.blocks["fim"].present)
        embedding = self.embedder().fit(left_out(taken(SPECTRA, rows), np.arange(known, len(rows))))
        assert embedding.valid.all()
        assert len(embedding.imputed) == (len(rows) - known if known else 0)
        alone = self.embedder().fit(replace(SPECTRA, blocks=taken(OUTPUTS, rows).blocks))
        np.testing.assert_array_equal(embedding.points[:, :8], alone.points)
        # Two are one component; one is nothing to tell apart.
        assert embedding.points.shape[1] == 8 + (known == 2)

    def test_neighbours_that_are_all_equally_far(self):
        outputs = np.array([[0.5, 0.5], [0.5, 0.9], [0.5, 0.1], [0.9, 0.5], [0.1, 0.5]])
        spectra = np.array([[0.1], [0.3], [0.5], [0.9]])
        places = embedders._impute(outputs, np.arange(5) > 0, spectra)
        np.testing.assert_allclose(places[0], spectra.mean())
        np.testing.assert_array_equal(places[1:], spectra)


def one_piece(table: FeatureTable, components: int) -> np.ndarray:
    """The embedding without chunks: every block as one float64 array."""

    def principal(curves: np.ndarray) -> np.ndarray:
        centred = curves - curves.mean(axis=0)
        vectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :components]
        sizes = np.abs(vectors)
        large = (sizes > 0.7 * sizes.max(axis=0)).argmax(axis=0)
        return centred @ (vectors * np.sign(vectors[large, np.arange(components)]))

    valid = table.blocks["fim"].present
    f, moments, spectra = (
        table.blocks[name].values[valid].astype(np.float64)
        for name in ("outputs", "moments", "fim")
    )
    f = np.sinh(f)
    mean, deviation = f.mean(axis=1, keepdims=True), f.std(axis=1, keepdims=True)
    flat = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
    shape = np.where(flat, 0.0, (f - mean) / np.where(flat, 1.0, deviation))
    columns = np.column_stack([moments, principal(shape), principal(spectra)])
    rounded = np.round(columns / np.abs(columns).max(axis=0), 6)
    points = np.full((len(table), columns.shape[1]), np.nan)
    points[valid] = (rankdata(rounded, axis=0) - 0.5) / len(columns)
    return points


def test_a_whole_table_is_embedded_as_in_one_piece(act_bench_catalogue):
    blocks = output_blocks(act_bench_catalogue)
    for table in (
        with_spectra(FeatureTable(act_bench_catalogue.hash, blocks), 4, 64),
        SPECTRA,
    ):
        embedding = PcaEmbedder().fit(table)
        assert len(embedding.imputed) == 0
        np.testing.assert_array_equal(embedding.points, one_piece(table, 6))


def assert_ranks_up_to_sign(columns: np.ndarray, scores: np.ndarray, *, sign: bool = True) -> None:
    assert columns.shape == scores.shape
    rounded = np.round(scores / np.abs(scores).max(axis=0), 6)
    expected = (rankdata(rounded, axis=0) - 0.5) / len(scores)
    for column, wanted in zip(columns.T, expected.T, strict=True):
        errors = [np.abs(column - wanted)] + ([np.abs(column - (1 - wanted))] if sign else [])
        # A score on the edge between two rounded values may take either rank.
        assert min((error > 1e-12).mean() for error in errors) < 0.05
        assert min(error.max() for error in errors) < 2 / len(scores)


def test_make_embedder():
    assert make_embedder(EmbeddingSpec(outputs=3, fim=2)) == PcaEmbedder(outputs=3, fim=2)

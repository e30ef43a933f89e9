"""Output features, the feature table, and spectra on disk."""

from __future__ import annotations

import dataclasses
import math
import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from mpmath import mp, mpf
from scipy.stats import norm
from strategies import space_specs
from torch import nn

from bo_act.activations.expressions import Expression, parse
from bo_act.activations.operators import of_kind
from bo_act.activations.space import Space
from bo_act.errors import FeatureError
from bo_act.features import compute as computing
from bo_act.features.compute import compute_features
from bo_act.features.fim import fim_spectra
from bo_act.features.outputs import MOMENTS, normal_quantiles, output_blocks, value_and_slope
from bo_act.features.store import FeatureStore, Shard
from bo_act.features.table import Block, FeatureTable
from bo_act.specs import FeaturesSpec, SpaceSpec


def named(*expressions: str) -> Space:
    return Space(SpaceSpec(name="named", expressions=expressions))


# --- output features ------------------------------------------------------------------------

MIXED = SpaceSpec(
    name="mixed",
    unary=of_kind("unary"),
    nary=("sum_n", "prod_n", "min_n"),
    binary=("div", "pow"),
    schemas=("nary(x,unary(x),square(x))", "unary(binary(unary(x),abs(x)))"),
    expressions=("one(x)", "sum_n(x,exp(x),mul(x,relu(x)),exp(x))"),
)
TRUTH = {
    "tanh(x)": mp.tanh,
    "mul(x,erf(softplus(x)))": lambda x: x * mp.erf(mp.log1p(mp.exp(x))),
    "exp(square(x))": lambda x: mp.exp(x * x),
    "max(x,negative(exp(x)))": lambda x: max(x, -mp.exp(x)),
    "relu(x)": lambda x: max(x, mpf(0)),
    "one(x)": lambda x: mpf(1),
}


def test_the_grid_is_the_normals_quantiles():
    x = normal_quantiles(64)
    np.testing.assert_allclose(norm.cdf(x.numpy()), (np.arange(64) + 0.5) / 64, rtol=1e-13)
    assert x.dtype == torch.float64
    assert len(normal_quantiles()) == 256


@pytest.mark.parametrize("text", TRUTH)
def test_value_and_slope(text):
    x = normal_quantiles(40)
    value, slope = value_and_slope(parse(text), x)
    assert not value.requires_grad
    assert not slope.requires_grad
    with mpmath.workdps(40):
        for point, y, dy in zip(x.tolist(), value.tolist(), slope.tolist(), strict=True):
            assert y == pytest.approx(float(TRUTH[text](mpf(point))), rel=1e-13, abs=1e-15)
            assert dy == pytest.approx(
                float(mp.diff(TRUTH[text], mpf(point))), rel=1e-11, abs=1e-13
            )


def test_output_blocks_are_those_of_the_oracle():
    space = named(*TRUTH)
    blocks = output_blocks(space.catalogue)
    levels = [(i + 0.5) / 256 for i in range(256)]
    points = [mpf(float(norm.ppf(level))) for level in levels]
    for text, function in TRUTH.items():
        index = space.catalogue.index(text)
        values = np.array([float(function(p)) for p in points])
        slopes = np.array([float(mp.diff(function, p)) for p in points])
        np.testing.assert_allclose(
            np.sinh(blocks["outputs"].values[index].astype(float)), values, rtol=3e-6, atol=1e-6
        )
        expected = [f(v) for v in (values, slopes) for f in (np.mean, lambda a: np.std(a, ddof=1))]
        np.testing.assert_allclose(
            np.sinh(blocks["moments"].values[index].astype(float)), expected, rtol=1e-5, atol=1e-6
        )
    assert blocks["moments"].values.shape == (len(TRUTH), len(MOMENTS))
    assert blocks["outputs"].values.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("log_sigmoid(div(one(x),zero(x)))", None),
        ("reciprocal(relu(x))", "value is not finite, first at x = -2.89"),
        ("exp(exp(exp(x)))", "value is not finite, first at x = 1.8"),
        ("pow(x,tanh(x))", "value is not finite, first at x = -2.89"),
        # A finite value whose slope is not: that of a^b at a = 0 for b < 1.
        ("pow(mul(x,zero(x)),hard_sigmoid(zero(x)))", "slope is not finite, first at x = -2.89"),
        # Up to e^577: the value is below 1e308 and its square is not.
        ("exp(mul(square(x),square(square(x))))", "deviation is not finite"),
    ],
)
def test_what_is_not_finite_is_missing_with_its_reason(text, reason):
    blocks = output_blocks(named("relu(x)", text).catalogue)
    for block in blocks.values():
        assert block.reasons[0] == ""
        assert block.present.tolist() == [True, reason is None]
        if reason is not None:
            assert block.reasons[1].startswith(reason)
            assert np.isnan(block.values[1]).all()


def one_by_one(expression: Expression) -> tuple[np.ndarray, np.ndarray, str]:
    """Outputs, moments and reason of one function alone."""
    x = normal_quantiles()
    value, slope = value_and_slope(expression, x)
    summary = torch.stack([value.mean(), value.std(), slope.mean(), slope.std()])
    for what, row in (("value", value), ("slope", slope)):
        bad = ~torch.isfinite(row)
        if bad.any():
            reason = f"{what} is not finite, first at x = {float(x[bad][0]):.3g}"
            break
    else:
        finite = torch.isfinite(summary).all()
        reason = "" if finite else "deviation is not finite, though value and slope are"
    return torch.asinh(value).numpy(), torch.asinh(summary).numpy(), reason


@settings(max_examples=25)
@given(space_specs())
@example(MIXED)
def test_many_functions_at_once_have_the_features_of_each_alone(spec):
    catalogue = Space(spec).catalogue
    blocks = output_blocks(catalogue)
    for index in range(len(catalogue)):
        outputs, moments, reason = one_by_one(catalogue.expression(index))
        for name, expected in (("outputs", outputs), ("moments", moments)):
            assert blocks[name].reasons[index] == reason
            if not reason:
                # Sums over the points may be in another order; a mean near zero is all rounding.
                np.testing.assert_allclose(
                    blocks[name].values[index], expected, rtol=2e-7, atol=1e-12
                )


def test_every_function_of_act_bench_has_features_or_a_reason(act_bench_catalogue):
    blocks = output_blocks(act_bench_catalogue)
    x = normal_quantiles()
    for block in blocks.values():
        assert len(block.values) == len(block.reasons) == 2826
        assert np.isfinite(block.values[block.present]).all()
        assert np.isnan(block.values[~block.present]).all()
        assert 2400 < block.present.sum() < 2826
    table = FeatureTable(act_bench_catalogue.hash, blocks)
    counts = table.missing()["outputs"]
    assert sum(counts.values()) == 2826 - blocks["outputs"].present.sum()
    assert set(counts) <= {"value is not finite", "slope is not finite"}
    for index in range(0, 2826, 25):
        value = act_bench_catalogue.activation(index)(x)
        if not torch.isfinite(value).all():
            assert blocks["outputs"].reasons[index].startswith("value is not finite")
        else:
            assert "value" not in blocks["outputs"].reasons[index].split(",")[0]


# --- blocks and tables ----------------------------------------------------------------------


def block(rows: int, width: int = 2, missing: tuple[int, ...] = ()) -> Block:
    values = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    values[list(missing)] = np.nan
    return Block(values, tuple("gone" if row in missing else "" for row in range(rows)))


@pytest.mark.parametrize(
    ("values", "reasons", "message"),
    [
        (np.zeros((3, 2)), ("", ""), "each of its 3 rows, got 2"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), ("", ""), "row 1 is not finite and has no reason"),
        (np.array([[np.inf, 1.0]]), ("",), "row 0 is not finite"),
        (np.zeros(3), ("", "", ""), r"expected values \(N, k\), got shape \(3,\)"),
    ],
)
def test_a_block_is_checked(values, reasons, message):
    with pytest.raises(FeatureError, match=message):
        Block(values, reasons)


def test_a_table_is_checked():
    with pytest.raises(FeatureError, match=r"blocks of one length, got .*'a': 3, 'b': 2"):
        FeatureTable("h", {"a": block(3), "b": block(2)})
    with pytest.raises(FeatureError, match="blocks of one length"):
        FeatureTable("h", {})
    table = FeatureTable("h", {"a": block(3, missing=(1,)), "b": block(3)})
    assert len(table) == 3
    assert table.missing() == {"a": {"gone": 1}, "b": {}}
    assert table.blocks["a"].present.tolist() == [True, False, True]


def test_the_tables_hash_is_of_its_numbers():
    table = FeatureTable("h", {"a": block(3), "b": block(3)})
    again = FeatureTable("h", {"b": block(3), "a": block(3)}, {"other": "provenance"})
    assert again.hash == table.hash
    others = [
        FeatureTable("g", table.blocks),
        FeatureTable("h", {"a": block(3)}),
        FeatureTable("h", {"a": block(3), "c": block(3)}),
        FeatureTable("h", {"a": block(3), "b": block(3, missing=(0,))}),
    ]
    assert len({other.hash for other in others} | {table.hash}) == 5


# --- the store ------------------------------------------------------------------------------


def shard(rows: int = 5) -> Shard:
    rng = np.random.default_rng(0)
    quantiles = rng.normal(size=(rows, 16)).astype(np.float32)
    null_mass = rng.uniform(size=(rows, 2)).astype(np.float32)
    quantiles[2], null_mass[2] = np.nan, np.nan
    return Shard(quantiles, null_mass, ["", "", "because, é", "", ""])


def assert_same(one: Shard | None, other: Shard) -> None:
    assert one is not None
    np.testing.assert_array_equal(one.quantiles, other.quantiles)
    np.testing.assert_array_equal(one.null_mass, other.null_mass)
    assert one.quantiles.dtype == one.null_mass.dtype == np.float32
    assert one.reasons == other.reasons


def test_a_shard_comes_back(tmp_path):
    store = FeatureStore({"a": 1}, root=tmp_path)
    assert store.read(0, 5) is None
    store.write(0, shard())
    assert_same(store.read(0, 5), shard())
    assert_same(FeatureStore({"a": 1}, root=tmp_path).read(0, 5), shard())
    assert store.read(1, 5) is None
    assert not list(tmp_path.glob("**/.*"))  # no temporary file is left


def test_another_key_shares_nothing(tmp_path):
    FeatureStore({"a": 1, "b": [2]}, root=tmp_path).write(0, shard())
    assert_same(FeatureStore({"b": [2], "a": 1}, root=tmp_path).read(0, 5), shard())
    for key in ({"a": 1}, {"a": 2, "b": [2]}, {"a": 1, "b": [2], "c": None}):
        assert FeatureStore(key, root=tmp_path).read(0, 5) is None


def test_the_store_is_in_the_cache_folder(tmp_path):
    assert FeatureStore({"a": 1}).folder.parent == tmp_path / "cache" / "features"


def test_a_damaged_shard_is_never_taken_for_a_good_one(tmp_path):
    store = FeatureStore({"a": 1}, root=tmp_path)
    store.write(0, shard())
    (path,) = store.folder.glob("*.parquet")
    good = path.read_bytes()
    refused = 0
    for place in range(4, len(good), 9):  # the bytes of all pages and of the footer
        bad = bytearray(good)
        bad[place] ^= 0x55
        for content in (bytes(bad), good[:place]):
            path.write_bytes(content)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = store.read(0, 5)
            if found is None:
                refused += 1
                assert "computed again" in str(told[-1].message)
            else:  # a byte that says nothing of the numbers
                np.testing.assert_array_equal(found.quantiles, shard().quantiles)
                np.testing.assert_array_equal(found.null_mass, shard().null_mass)
    assert refused > len(good) / 9


def test_a_shard_of_other_length_is_not_taken(tmp_path):
    store = FeatureStore({"a": 1}, root=tmp_path)
    store.write(0, shard())
    with pytest.warns(UserWarning, match="5 rows instead of 4"):
        assert store.read(0, 4) is None


# --- the whole table ------------------------------------------------------------------------


class Counted:
    """Builds a tiny network and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, activation) -> nn.Module:
        self.calls += 1
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), activation(), nn.Linear(3, 2))


SPEC = FeaturesSpec(quantiles=8)
IMAGES = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def features(space, network=None, **changes) -> FeatureTable:
    options = {"images": IMAGES, "labels": LABELS, "spec": SPEC, "key": {"network": "tiny"}}
    return compute_features(space, network=network or Counted(), **(options | changes))


def assert_same_table(one: FeatureTable, other: FeatureTable) -> None:
    assert one.hash == other.hash
    assert list(one.blocks) == list(other.blocks)
    for name, found in one.blocks.items():
        np.testing.assert_array_equal(found.values, other.blocks[name].values)
        assert found.reasons == other.blocks[name].reasons


def test_the_table_of_a_tiny_network(tiny):
    table = features(tiny)
    catalogue = tiny.catalogue
    assert list(table.blocks) == ["outputs", "moments", "fim", "fim_null"]
    assert table.catalogue_hash == catalogue.hash
    assert table.blocks["fim"].values.shape == (len(catalogue), 2 * 8)
    assert table.blocks["fim_null"].values.shape == (len(catalogue), 2)
    for text in ("tanh(x)", "relu(x)", "add(x,exp(x))", "one(x)"):
        index = catalogue.index(text)
        with torch.random.fork_rng():
            torch.manual_seed(SPEC.seed)
            network = Counted()(lambda i=index: catalogue.activation(i))
        expected = fim_spectra(network, IMAGES, LABELS, quantiles=8)
        np.testing.assert_allclose(
            table.blocks["fim"].values[index], expected.quantiles.ravel(), rtol=1e-6
        )
        np.testing.assert_allclose(table.blocks["fim_null"].values[index], expected.null_mass)


def test_a_constant_has_spectra(tiny):
    # The first layer gets no gradient through a constant: its spectrum is null, not missing.
    table = features(tiny)
    index = tiny.catalogue.index("one(x)")
    assert table.blocks["fim"].reasons[index] == ""
    assert table.blocks["fim_null"].values[index, 0] == 1.0
    assert table.blocks["fim_null"].values[index, 1] < 1.0


def test_spectra_are_missing_where_outputs_are(tiny):
    network = Counted()
    table = features(tiny, network)
    missing = ~table.blocks["outputs"].present
    assert missing.sum() > 1
    for name in ("fim", "fim_null"):
        reasons = np.array(table.blocks[name].reasons)
        assert set(reasons[missing]) == {"output features are missing"}
        assert np.isnan(table.blocks[name].values[missing]).all()
    assert network.calls <= 1 + (~missing).sum()


def test_a_function_whose_spectrum_fails_is_missing(tiny, monkeypatch):
    real = computing.fim_spectra

    def failing(network, *arguments, **options):
        if "tanh" in repr(network) and "Activation" in repr(network):
            raise FeatureError("eigenvalues do not converge, at least here")
        return real(network, *arguments, **options)

    monkeypatch.setattr(computing, "fim_spectra", failing)
    table = features(tiny)
    index = tiny.catalogue.index("tanh(x)")
    assert table.blocks["fim"].reasons[index] == "eigenvalues do not converge, at least here"
    assert table.blocks["outputs"].reasons[index] == ""
    assert table.missing()["fim"]["eigenvalues do not converge"] > 1


def test_output_features_alone(tiny):
    for table in (compute_features(tiny), compute_features(tiny.catalogue, spec=SPEC)):
        assert list(table.blocks) == ["outputs", "moments"]
    network = Counted()
    table = features(tiny, network, spec=FeaturesSpec(fim=False))
    assert list(table.blocks) == ["outputs", "moments"]
    assert network.calls == 0


def test_the_table_does_not_depend_on_torchs_seed_and_leaves_it(tiny):
    torch.manual_seed(1)
    one = features(tiny, key=None)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    assert_same_table(features(tiny, key=None), one)
    other = features(tiny, key=None, spec=SPEC.model_copy(update={"seed": 1}))
    assert other.hash != one.hash


def test_a_second_call_reads_what_the_first_kept(tiny, monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 8)
    fresh = features(tiny, key=None)
    first, second = Counted(), Counted()
    assert_same_table(features(tiny, first), fresh)
    assert first.calls > 10
    assert_same_table(features(tiny, second), fresh)
    assert second.calls == 1  # the ordinary network that tells the number of layers
    for changes in (
        {"key": {"network": "other"}},
        {"spec": SPEC.model_copy(update={"seed": 3})},
        {"key": None},
    ):
        again = Counted()
        features(tiny, again, **changes)
        assert again.calls == first.calls


def test_an_interrupted_computation_goes_on_where_it_stopped(tiny, monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 8)
    fresh = features(tiny, key=None)
    whole = Counted()
    features(tiny, whole, key=None)
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 16:
            raise KeyboardInterrupt

    first, second = Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        features(tiny, first, progress=stop)
    total = len(tiny.catalogue)
    assert seen == [(0, total), (8, total), (16, total)]
    done = int(fresh.blocks["fim"].present[:16].sum())
    assert first.calls == 1 + done
    seen.clear()
    assert_same_table(features(tiny, second, progress=lambda *counts: seen.append(counts)), fresh)
    assert second.calls == whole.calls - done
    assert seen[:2] == [(16, total), (24, total)]
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "rows", "columns"])
def test_a_damaged_shard_is_computed_again(tiny, monkeypatch, tmp_path, damage):
    monkeypatch.setattr(computing, "SHARD", 8)
    cache = tmp_path / "kept"
    fresh = features(tiny, cache=cache)
    paths = sorted(cache.glob("*/*.parquet"))
    assert len(paths) == math.ceil(len(tiny.catalogue) / 8)
    path = paths[1]
    content = path.read_bytes()
    if damage == "rows":
        path.write_bytes(paths[-1].read_bytes())
    elif damage == "columns":
        path.write_bytes(content.replace(b"null_mass", b"nuII_mass"))
    else:
        path.write_bytes({"truncated": content[:-20], "empty": b"", "garbage": b"x" * 500}[damage])
    network = Counted()
    with pytest.warns(UserWarning, match="computed again"):
        again = features(tiny, network, cache=cache)
    assert_same_table(again, fresh)
    assert network.calls == 1 + int(fresh.blocks["fim"].present[8:16].sum())
    last = Counted()
    assert_same_table(features(tiny, last, cache=cache), fresh)
    assert last.calls == 1


def test_a_network_in_which_nothing_is_covered(tiny):
    class Scaled(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.activation = activation

        def forward(self, x):
            return self.activation(x.flatten(1) * self.scale)

    with pytest.raises(FeatureError):
        features(tiny, lambda activation: Scaled(activation()))


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_a_network_needs_a_batch(tiny, missing):
    with pytest.raises(FeatureError, match="spectra need a batch"):
        features(tiny, **{missing: None})


def test_provenance(tiny):
    table = features(tiny)
    assert table.provenance["catalogue"] == tiny.catalogue.hash
    assert table.provenance["quantiles"] == 8
    assert table.provenance["key"] == {"network": "tiny"}
    assert dataclasses.replace(table, provenance={}).hash == table.hash

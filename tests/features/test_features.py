"""Output features, the feature table, and spectra on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from mpmath import mp, mpf
from scipy.stats import norm
from strategies import space_specs
from torch import nn

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.operators import of_kind
from bo_act.errors import FeatureError, NetworkError
from bo_act.features import compute as computing
from bo_act.features import fisher_worker
from bo_act.features import store as storing
from bo_act.features.compute import compute_features
from bo_act.features.fisher_worker import FisherJob, FunctionBatch, Spectra
from bo_act.features.outputs import MOMENTS, normal_quantiles, output_blocks
from bo_act.features.store import FeatureStore
from bo_act.features.table import NOT_COMPUTED, Block, FeatureTable
from bo_act.fisher.spectra import fim_spectra
from bo_act.spaces.space import Space, load_space
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
        (np.zeros((3, 2)), ("", ""), "each of the block's 3 rows, got 2"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), ("", ""), "row 1 is not finite and has no reason"),
        (np.array([[np.inf, 1.0]]), ("",), "row 0 is not finite"),
        (np.zeros(3), ("", "", ""), r"expected values \(N, k\), got shape \(3,\)"),
    ],
)
def test_a_block_is_checked(values, reasons, message):
    with pytest.raises(FeatureError, match=message):
        Block(values, reasons)


def test_a_table_is_checked():
    with pytest.raises(FeatureError, match=r"blocks of equal length, got .*'a': 3, 'b': 2"):
        FeatureTable("h", {"a": block(3), "b": block(2)})
    with pytest.raises(FeatureError, match="blocks of equal length"):
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


# --- the whole table ------------------------------------------------------------------------


# Networks of an ordinary function that are built first: two, which have to be equal.
PROBES = 2


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
    options = {"inputs": IMAGES, "targets": LABELS, "spec": SPEC, "key": {"network": "tiny"}}
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
    assert network.calls <= PROBES + (~missing).sum()


def test_a_function_whose_spectrum_fails_is_missing(tiny, monkeypatch):
    real = fisher_worker.network_spectra

    def failing(network, *arguments, **options):
        if "exp(x)" in repr(network):
            raise FeatureError("eigenvalues do not converge, at least here")
        return real(network, *arguments, **options)

    monkeypatch.setattr(fisher_worker, "network_spectra", failing)
    table = features(tiny)
    index = tiny.catalogue.index("exp(x)")
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
    assert first.calls == PROBES + fresh.blocks["fim"].present.sum()
    assert_same_table(features(tiny, second), fresh)
    assert second.calls == PROBES  # the ordinary network that tells the layers, twice


OTHER_IMAGES = IMAGES.clone()
OTHER_IMAGES[3, 0, 1, 1] += 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"key": {"network": "other"}},
        {"key": None},
        {"inputs": OTHER_IMAGES},
        {"inputs": IMAGES.double()},
        {"inputs": IMAGES.view(6, 1, 1, 4)},
        {"targets": LABELS.flip(0)},
        {"spec": SPEC.model_copy(update={"seed": 3})},
        {"spec": SPEC.model_copy(update={"fisher": "exact"})},
        {"spec": SPEC.model_copy(update={"loss": "mse"})},
        {"spec": SPEC.model_copy(update={"fisher": "empirical", "label_smoothing": 0.1})},
        {"spec": SPEC.model_copy(update={"weight_sharing": "reduce"})},
        {"spec": SPEC.model_copy(update={"statistics": "running"})},
        {"spec": SPEC.model_copy(update={"quantiles": 9})},
        {"spec": SPEC.model_copy(update={"precision": "float64"})},
        {"version": "torch"},
        {"version": "algorithm"},
    ],
    ids="-".join,
)
def test_whatever_changes_the_numbers_is_computed_anew(tiny, monkeypatch, changes):
    first, again = Counted(), Counted()
    features(tiny, first)
    changes = dict(changes)
    version = changes.pop("version", None)
    if version == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9+cpu")
    elif version == "algorithm":
        monkeypatch.setattr(computing, "ALGORITHM", 999)
    features(tiny, again, **changes)
    assert again.calls == first.calls


def test_what_does_not_change_the_numbers_is_not_computed_anew(tiny, monkeypatch):
    features(tiny)
    monkeypatch.setattr(torch, "__version__", torch.__version__.split("+")[0] + "+elsewhere")
    again = Counted()
    features(tiny, again, spec=SPEC.model_copy(update={"batch_size": 3, "subset": 5}))
    assert again.calls == PROBES


def test_an_interrupted_computation_goes_on_where_it_stopped(tiny, monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 8)
    whole = Counted()
    fresh = features(tiny, whole, key=None)
    total = int(fresh.blocks["outputs"].present.sum())
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 16:
            raise KeyboardInterrupt

    first, second = Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        features(tiny, first, progress=stop)
    assert seen == [(0, total), (8, total), (16, total)]
    assert first.calls == PROBES + 16
    seen.clear()
    assert_same_table(features(tiny, second, progress=lambda *counts: seen.append(counts)), fresh)
    assert second.calls == whole.calls - 16
    assert seen[:2] == [(16, total), (24, total)]
    assert seen[-1] == (total, total)


def test_a_damaged_shard_is_computed_again_and_nothing_else(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(computing, "SHARD", 8)
    cache = tmp_path / "kept"
    fresh = features(tiny, cache=cache)
    (manifest,) = cache.glob("*/manifest.jsonl")
    second = json.loads(manifest.read_text().splitlines()[1])
    path = manifest.parent / second["file"]
    path.write_bytes(path.read_bytes()[:-20])
    network = Counted()
    with pytest.warns(UserWarning, match="recomputing the spectra of 8 functions") as told:
        again = features(tiny, network, cache=cache)
    (warning,) = told
    assert path.name in str(warning.message)
    assert tiny.catalogue.text(second["functions"][0]) in str(warning.message)
    assert_same_table(again, fresh)
    assert network.calls == PROBES + 8
    last = Counted()
    assert_same_table(features(tiny, last, cache=cache), fresh)
    assert last.calls == PROBES


def test_the_first_of_two_rows_holds(tiny):
    """What another process kept for the same functions changes nothing."""
    table = features(tiny)
    names = ("algorithm", "catalogue", "torch", "network", "batch", "options")
    store = FeatureStore({name: table.provenance[name] for name in names})
    assert str(store.folder) == table.provenance["store"]["folder"]
    (shard,) = store.shards()
    store.add(dataclasses.replace(shard, quantiles=shard.quantiles + 1))
    assert len(list(store.shards())) == 2
    assert_same_table(features(tiny), table)


def test_a_store_that_loses_what_it_kept(tiny, monkeypatch):
    monkeypatch.setattr(computing.FeatureStore, "shards", lambda self: iter(()))
    first = features(tiny)  # what was computed just now is here
    with pytest.raises(FeatureError, match="were saved but can no longer be read"):
        features(tiny)
    monkeypatch.undo()
    assert_same_table(features(tiny), first)


@pytest.mark.parametrize("trouble", ["no folder", "full"])
def test_a_store_that_cannot_keep_is_done_without(tiny, monkeypatch, tmp_path, trouble):
    """Spectra are a cache: that they cannot be kept is said once, and the work goes on."""
    if trouble == "no folder":
        (tmp_path / "file").touch()
        cache = tmp_path / "file" / "cache"
    else:
        cache = tmp_path / "cache"
        monkeypatch.setattr(storing.FeatureStore, "_append", lambda *_: full())
    with pytest.warns(UserWarning, match=r"cannot be kept in .*; (make room|move the)") as told:
        table = features(tiny, cache=cache)
    assert len(told) == 1
    monkeypatch.undo()
    assert_same_table(features(tiny), table)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- subsets --------------------------------------------------------------------------------


def subset(count: int | None) -> FeaturesSpec:
    return SPEC.model_copy(update={"subset": count})


def test_a_subset_has_spectra_and_the_rest_is_left_out(tiny):
    full = features(tiny, key=None)
    network = Counted()
    part = features(tiny, network, key=None, spec=subset(7))
    assert network.calls == PROBES + 7
    for name in ("fim", "fim_null"):
        block, outputs = part.blocks[name], part.blocks["outputs"]
        assert block.present.sum() == 7
        np.testing.assert_array_equal(block.left_out, outputs.present & ~block.present)
        assert set(np.array(block.reasons)[~outputs.present]) == {"output features are missing"}
        np.testing.assert_array_equal(
            block.values[block.present], full.blocks[name].values[block.present]
        )
        assert np.isnan(block.values[~block.present]).all()
    for baseline in tiny.baselines:
        assert part.blocks["fim"].present[tiny.catalogue.index(baseline)]
    assert part.missing()["fim"][NOT_COMPUTED] > 0
    assert_same_table(features(tiny, key=None, spec=subset(10_000)), full)


def test_a_larger_subset_computes_the_difference_alone(tiny):
    full = features(tiny, key=None)
    small = features(tiny, spec=subset(7))
    assert small.blocks["fim"].present.sum() == 7
    network = Counted()
    larger = features(tiny, network, spec=subset(12))
    new = larger.blocks["fim"].present & ~small.blocks["fim"].present
    assert network.calls == PROBES + new.sum()
    network = Counted()
    assert_same_table(features(tiny, network, spec=subset(None)), full)
    assert network.calls == PROBES + full.blocks["fim"].present.sum() - (7 + new.sum())
    # What is there beyond a subset is not taken into its table.
    network = Counted()
    assert_same_table(features(tiny, network, spec=subset(7)), small)
    assert network.calls == PROBES


def test_a_baseline_outside_the_space_or_without_features_is_no_matter():
    space = Space(
        SpaceSpec(
            name="named",
            expressions=("relu(x)", "tanh(x)", "reciprocal(x)", "exp(exp(exp(x)))"),
            baselines=("mish(x)", "exp(exp(exp(x)))", "tanh(x)"),
        )
    )
    table = features(space, spec=subset(1))
    assert table.blocks["fim"].present.tolist() == [False, True, False, False]


# --- layers that are not covered ------------------------------------------------------------


def test_a_network_that_draws_its_weights_elsewhere_is_refused(tiny):
    generator = torch.Generator().manual_seed(0)

    def build(activation) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), activation(), nn.Linear(3, 2))
        nn.init.normal_(network[3].weight, generator=generator)
        return network

    with pytest.raises(FeatureError, match=r"differ \(in '3.weight'\).*torch's global generator"):
        features(tiny, build)


def test_all_options_reach_the_spectra(tiny):
    """Each of them changes the numbers, to those that fim_spectra gives."""

    def build(activation) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, (1, 2)), nn.BatchNorm2d(2), activation(), nn.Flatten(), nn.Linear(4, 2)
        )

    index, seen = tiny.catalogue.index("tanh(x)"), set()
    for change in (
        {},
        {"loss": "mse"},
        {"fisher": "empirical"},
        {"fisher": "empirical", "label_smoothing": 0.3},
        {"weight_sharing": "reduce"},
        {"statistics": "running"},
        {"fisher": "exact"},
        {"precision": "float64"},
    ):
        spec = SPEC.model_copy(update=change)
        table = features(tiny, build, spec=spec, key=None)
        found = table.blocks["fim"].values[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SPEC.seed)
            network = build(lambda: tiny.catalogue.activation(index))
        dtype = torch.float64 if spec.precision == "float64" else torch.float32
        options = spec.model_dump(
            include={"fisher", "loss", "label_smoothing", "weight_sharing", "statistics"}
        )
        expected = fim_spectra(network.to(dtype), IMAGES.to(dtype), LABELS, quantiles=8, **options)
        np.testing.assert_allclose(found, expected.quantiles.ravel(), rtol=1e-4)
        seen.add(found.tobytes())
    assert len(seen) == 8


def test_several_functions_in_flight_change_nothing(tiny):
    job = FisherJob(Counted(), IMAGES, LABELS, SPEC)
    indices = np.flatnonzero(output_blocks(tiny.catalogue)["outputs"].present)
    piece = FunctionBatch(indices, tuple(tiny.catalogue.text(int(i)) for i in indices))
    one, three = (Spectra(job, torch.device("cpu"), in_flight=n).shard(piece) for n in (1, 3))
    np.testing.assert_array_equal(one.quantiles, three.quantiles)
    np.testing.assert_array_equal(one.null_mass, three.null_mass)
    assert one.reasons == three.reasons
    assert torch.backends.mha.get_fastpath_enabled()  # a switch that all threads share


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


class Partly(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 2))

    def forward(self, x):
        return self.layers(x.flatten(1) * self.scale)


def test_uncovered_parameters_are_named_once_and_kept(tiny):
    with pytest.warns(UserWarning, match="do not reflect these parameters") as told:
        table = features(tiny, Partly)
    (warning,) = told
    assert "not covered by the Fisher matrix: scale; " in str(warning.message)
    assert warning.filename == __file__
    assert table.provenance["uncovered"] == ("scale",)
    assert table.provenance["layers"] == ("layers.0", "layers.2")


@pytest.mark.parametrize("missing", ["inputs", "targets"])
def test_a_network_needs_a_batch(tiny, missing):
    spec = SPEC.model_copy(update={"fisher": "empirical"})
    with pytest.raises(FeatureError, match="spectra need a batch"):
        features(tiny, spec=spec, **{missing: None})


@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_targets_that_are_not_used_need_not_be_given(tiny, fisher):
    spec = SPEC.model_copy(update={"fisher": fisher})
    without, given = (features(tiny, spec=spec, targets=targets) for targets in (None, LABELS))
    np.testing.assert_array_equal(without.blocks["fim"].values, given.blocks["fim"].values)


def test_provenance(tiny, tmp_path):
    table = features(tiny)
    assert table.provenance["catalogue"] == tiny.catalogue.hash
    assert table.provenance["options"]["quantiles"] == 8
    assert table.provenance["network"] == {"network": "tiny"}
    assert table.provenance["uncovered"] == ()
    store = table.provenance["store"]
    assert store["folder"].startswith(str(tmp_path))
    assert store["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("**/*.parquet"))
    assert features(tiny, key=None).provenance["store"] is None
    assert dataclasses.replace(table, provenance={}).hash == table.hash


def test_slopes_are_the_same_without_gradients(tiny):
    with torch.no_grad():
        blocks = output_blocks(tiny.catalogue)
    for name, block in output_blocks(tiny.catalogue).items():
        np.testing.assert_array_equal(blocks[name].values, block.values)


def test_lazy_layers_take_their_sizes_from_the_batch():
    space = load_space("classic")

    def network(activation):
        return nn.Sequential(nn.LazyLinear(8), activation(), nn.Linear(8, 3))

    images = np.random.default_rng(0).normal(size=(6, 4))
    table = compute_features(space, network=network, inputs=images)
    assert table.provenance["layers"] == ("0", "2")
    with pytest.raises(NetworkError, match=r"'2.weight' on the meta device; build"):
        compute_features(space, network=lambda a: network(a)[1:].to("meta"), inputs=images)

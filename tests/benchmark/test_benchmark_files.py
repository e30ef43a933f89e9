"""Benchmark files: what is saved is loaded again, what is damaged is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks_of_tests import random_benchmark

from bo_act import content
from bo_act.benchmark import parquet
from bo_act.benchmark.act_bench import write_act_bench
from bo_act.benchmark.parquet import SPECTRUM_ERROR, load, open_benchmark, save
from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.errors import BenchmarkError, BoActError
from bo_act.features.table import Block, FeatureTable
from bo_act.metrics import ACCURACY
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return random_benchmark(load_space("classic"), runs=3)


def with_spectra(benchmark: Benchmark) -> Benchmark:
    count = len(benchmark)
    fim = np.random.default_rng(0).normal(-5, 15, (count, 24)).astype(np.float32)
    fim[4] = np.nan
    null = np.full((count, 3), 0.25, dtype=np.float32)
    null[4] = np.nan
    reasons = tuple("no gradient" if i == 4 else "" for i in range(count))
    blocks = {**benchmark.features.blocks, "fim": Block(fim, reasons)}
    blocks["fim_null"] = Block(null, reasons)
    features = FeatureTable(
        benchmark.features.catalogue_hash, blocks, {"layers": 3, "store": "/somewhere"}
    )
    return dataclasses.replace(benchmark, features=features, unmatched=("no_such(x)",))


def test_files_of_one_space_share_its_catalogue(benchmark, tmp_path):
    other = random_benchmark(Space(SpaceSpec(name="o", expressions=("relu(x)", "tanh(x)"))))
    for name, content_ in (("a", benchmark), ("b", benchmark), ("c", other)):
        save(content_, tmp_path / f"{name}.parquet")
    a, b, c = (load(tmp_path / f"{name}.parquet") for name in "abc")
    assert a.space.catalogue is b.space.catalogue
    assert [c.space.catalogue.text(i) for i in range(len(c))] == ["relu(x)", "tanh(x)"]
    for one, whole in ((a, benchmark), (b, benchmark), (c, other)):
        for kind in ("outputs", "moments"):
            found, expected = (each.features.blocks[kind].values for each in (one, whole))
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("curves", [True, False])
@pytest.mark.parametrize("spectra", [True, False])
def test_what_is_saved_is_loaded_again(tmp_path, benchmark, curves, spectra):
    if spectra:
        benchmark = with_spectra(benchmark)
    if not curves:
        benchmark = dataclasses.replace(benchmark, curves=None)
    path = tmp_path / "folder" / "b.parquet"
    save(benchmark, path)
    assert [file.name for file in path.parent.iterdir()] == ["b.parquet"]
    again = load(path)
    for name in ("name", "chance", "provenance", "unmatched"):
        assert getattr(again, name) == getattr(benchmark, name)
    for metric in MEASURED:
        np.testing.assert_array_equal(
            again.runs[metric], benchmark.runs[metric].astype(np.float32).astype(np.float64)
        )
    np.testing.assert_array_equal(again.diverged, benchmark.diverged)
    assert again.diverged.dtype == bool
    if curves:
        np.testing.assert_array_equal(again.curves, benchmark.curves)
    else:
        assert again.curves is None
    assert set(again.features.blocks) == set(benchmark.features.blocks)
    for kind, block in benchmark.features.blocks.items():
        found = again.features.blocks[kind]
        assert found.reasons == block.reasons
        tolerance = SPECTRUM_ERROR if kind.startswith("fim") else 0
        np.testing.assert_allclose(found.values, block.values, rtol=tolerance)
    assert "store" not in again.features.provenance
    save(again, tmp_path / "twice.parquet")  # rounding again changes nothing
    assert load(tmp_path / "twice.parquet").hash == again.hash


def test_the_space_is_in_the_file(tmp_path, benchmark, monkeypatch):
    save(benchmark, tmp_path / "b.parquet")
    monkeypatch.setattr(content, "find", None)
    again = load(tmp_path / "b.parquet")
    assert again.space.spec == benchmark.space.spec
    assert again.space.catalogue.hash == benchmark.space.catalogue.hash


def changed(path: Path, **about: object) -> None:
    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[parquet._KEY])
    table = table.replace_schema_metadata({parquet._KEY: json.dumps(known | about)})
    pq.write_table(table, path)


def test_files_that_are_none(tmp_path, benchmark):
    path = tmp_path / "b.parquet"
    save(benchmark, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchmarkError, match=r"b\.parquet: cannot be read as a Parquet file"):
        load(path)
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(BenchmarkError, match="another kind of Parquet file"):
        load(path)
    path.write_bytes(whole)
    changed(path, form=99)
    with pytest.raises(
        BenchmarkError, match="expected a benchmark file of format 1, got format 99"
    ):
        load(path)
    path.write_bytes(whole)
    changed(path, catalogue="0" * 64)
    with pytest.raises(BenchmarkError, match="have other numbers in this version"):
        load(path)
    path.write_bytes(whole)
    changed(path, space={"name": "x"})
    with pytest.raises(BenchmarkError, match="the file is damaged"):
        load(path)
    path.write_bytes(whole)
    table = pq.read_table(path).drop_columns(["validation_loss"])
    pq.write_table(table, path)
    with pytest.raises(BenchmarkError, match=r"damaged: KeyError: .*validation_loss"):
        load(path)


# --- by name --------------------------------------------------------------------------------


def test_benchmarks_are_found_by_name(tmp_path, monkeypatch, benchmark):
    monkeypatch.chdir(tmp_path)
    save(benchmark, tmp_path / "studies" / "benchmarks" / "mine.parquet")
    assert open_benchmark("mine").hash == load(Path("studies/benchmarks/mine.parquet")).hash
    assert "mine" in content.names("studies/benchmarks")
    with pytest.raises(BoActError, match=r"no benchmark named 'mime'.*did you mean.*mine"):
        open_benchmark("mime")
    with pytest.raises(BoActError, match="no benchmark file"):
        open_benchmark("there.parquet")
    with pytest.raises(BoActError, match="no benchmark file"):
        open_benchmark("there.json")


def test_a_file_of_act_bench_is_converted_once(tmp_path, monkeypatch, act_bench: Space):
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(tmp_path / "cache"))
    text = {act_bench.catalogue.text(i): {"Validation Accuracy": i / 100} for i in range(50)}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(text))
    first = open_benchmark(str(path))
    assert first.name == "small"
    assert int(first.measured.sum()) == 50
    monkeypatch.setattr(parquet, "read_act_bench", None)
    path.rename(tmp_path / "renamed.json")
    again = open_benchmark(str(tmp_path / "renamed.json"))
    assert again.name == "renamed"
    np.testing.assert_array_equal(again.values, first.values)
    assert len(list((tmp_path / "cache" / "benchmarks").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("digits_mlp", (2826, 2826, 3)),
        ("fashion_mnist_small_cnn", (2826, 2826, 3)),
        ("digits_small_cnn", (2826, 2826, 2)),
        ("fashion_mlp_adam", (2826, 2826, 1)),
        ("friedman_mlp", (2826, 300, 3)),
        ("digits_resnet", (2826, 150, 3)),
        ("fashion_vit", (2826, 300, 3)),
        ("topics_gpt", (623, 61, 3)),
    ],
)
def test_what_is_shipped(tmp_path, name, runs, act_bench):
    """Each is whole, and says how it was made: all that its study file says."""
    functions, repeated, seeds = runs
    from bo_act.specs.files import read_study

    benchmark = open_benchmark(name)
    there = np.isfinite(benchmark.runs["validation_value"])
    assert there[:, 0].sum() == functions
    assert there.sum(axis=0)[1:].tolist() == [repeated] * (seeds - 1)
    assert benchmark.curves is not None
    assert benchmark.features.blocks["fim"].present.sum() > 1700
    assert benchmark.space.catalogue.hash == act_bench.catalogue.hash
    spec = read_study(name).model_dump(mode="json")
    for part in ("model", "data", "training"):
        for key, value in benchmark.provenance["study"][part].items():
            assert spec[part][key] == value
    last = benchmark.curves[..., -1]
    there = np.isfinite(last)
    np.testing.assert_allclose(
        last[there], benchmark.runs["validation_value"][there], rtol=1e-5, atol=1e-5
    )
    guessing = benchmark.runs["validation_value"][benchmark.diverged]
    np.testing.assert_allclose(guessing, benchmark.chance, rtol=1e-5)
    if benchmark.metric != ACCURACY:
        return
    write_act_bench(benchmark, tmp_path / "b.json.gz")
    assert (tmp_path / "b.json.gz").stat().st_size > 1e5

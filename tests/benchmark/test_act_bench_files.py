"""Files in the form of Act-Bench: every quirk of the released ones, and every damage."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks_of_tests import random_benchmark

from bo_act.benchmark import records
from bo_act.benchmark.act_bench import KEYS, read_act_bench, write_act_bench
from bo_act.benchmark.cdf import QUANTILES, cdf_vector, layer_ends, layer_quantiles
from bo_act.benchmark.table import MEASURED
from bo_act.errors import BenchmarkError
from bo_act.features.table import Block, FeatureTable
from bo_act.spaces.space import Space, load_space

LAYERS = (26, 60, 19)
"""Bins of the layers, as few as in All-CNN-C's smallest ones."""


def spectrum(seed: int) -> list[np.ndarray]:
    """Log eigenvalues of each layer."""
    generator = np.random.default_rng(seed)
    return [generator.normal(-20 + 8 * layer, 12, 4000) for layer in range(len(LAYERS))]


def vector(seed: int) -> list[float]:
    """The released form, by numpy's own histogram."""
    parts = []
    for bins, logs in zip(LAYERS, spectrum(seed), strict=True):
        counts, _ = np.histogram(logs, np.linspace(-100, 100, bins + 1))
        parts.append(np.cumsum(counts) / counts.sum())
    return np.concatenate(parts).tolist()


def record(accuracy: float = 0.9, seed: int = 0, **changes: Any) -> dict[str, Any]:
    made = {
        "Train Accuracy": accuracy + 0.05,
        "Validation Accuracy": accuracy,
        "Test Accuracy": accuracy - 0.01,
        "Train Loss": 0.3,
        "Validation Loss": 0.4,
        "Test Loss": 0.5,
        "Equivalent Activation Functions": [],
        "Fisher log eigenvalue CDF": vector(seed),
        "Runtime (s)": 12.5,
    }
    return made | {key.replace("_", " "): value for key, value in changes.items()}


CDF = "Fisher log eigenvalue CDF"
SAME = "Equivalent Activation Functions"


def quirky() -> dict[str, dict[str, Any]]:
    return {
        "max(relu(x),cosh(x))": record(0.91, 1),
        # another spelling of relu + tanh
        "add(tanh(x),relu(x))": record(0.8, 2),
        # known by an equivalent alone
        "made_up(x)": record(0.7, 3) | {SAME: ["add(swish(x),elu(x))"]},
        "no_such(x)": record(0.6, 4),
        # two records of one function
        "sub(relu(x),erf(x))": record(0.5, 5),
        "sub(max(x,0*x),erf(x))": record(0.4, 6),
        "mul(relu(x),erf(x))": record(0.85, 7) | {CDF: None},
        "mul(elu(x),erf(x))": record(0.85, 8) | {CDF: []},
        "mul(selu(x),erf(x))": record(0.85, 9) | {CDF: [0.1, 0.5, 1.0]},
        "mul(tanh(x),erf(x))": record(0.85, 10) | {CDF: [math.nan, *vector(10)[1:]]},
        "mul(swish(x),erf(x))": record(0.85, 11) | {CDF: [0.5, 0.2, *vector(11)[2:]]},
        "div(one(x),zero(x))": record(0.1, 12) | {"Train Loss": math.nan, "Test Loss": math.inf},
        "pow(one(x),zero(x))": {"Validation Accuracy": 0.1003},
        "min(relu(x),erf(x))": record(0.1, 13) | {"Validation Accuracy": math.nan},
    }


def written(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("act_bench")


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("name", ["file.json", "file.json.gz"])
def test_every_quirk(tmp_path, space, monkeypatch, name, chunk):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    content = quirky()
    content["sub(relu(x),erf(x)) "] = content.pop("sub(max(x,0*x),erf(x))")
    counts: list[int] = []
    path = written(tmp_path / name, content)
    benchmark = read_act_bench(path, space=space, progress=counts.append)
    index = space.catalogue.index
    fim = benchmark.features.blocks["fim"]
    values = benchmark.values
    assert counts == list(range(1, len(content) + 1))
    assert benchmark.name == "file"
    assert benchmark.seeds == 1
    assert values[index("max(cosh(x),relu(x))")] == 0.91
    assert values[index("add(relu(x),tanh(x))")] == 0.8
    assert values[index("add(elu(x),swish(x))")] == 0.7
    assert values[index("sub(relu(x),erf(x))")] == pytest.approx(0.45)
    assert benchmark.unmatched == ("no_such(x)",)
    assert benchmark.provenance["merged"] == 1
    assert benchmark.provenance["records"] == len(content)
    assert int(benchmark.measured.sum()) == len(content) - 2
    reasons = {
        text: fim.reasons[index(text)]
        for text in content
        if text not in {"made_up(x)", "no_such(x)"}
    }
    assert reasons["max(relu(x),cosh(x))"] == ""
    assert reasons["mul(relu(x),erf(x))"] == "no vector in the file"
    assert reasons["mul(elu(x),erf(x))"] == "no vector in the file"
    assert reasons["mul(selu(x),erf(x))"] == "a vector of 3 numbers instead of the usual 105"
    assert reasons["mul(tanh(x),erf(x))"] == "a vector with NaN or infinite numbers"
    assert "not a distribution function" in reasons["mul(swish(x),erf(x))"]
    assert fim.reasons[index("add(relu(x),relu(x))")] == "not in the file"
    assert benchmark.chance == 0.1
    at_chance = {"div(one(x),zero(x))", "pow(one(x),zero(x))", "min(relu(x),erf(x))"}
    assert {int(i) for i in np.flatnonzero(benchmark.diverged)} == set(map(index, at_chance))
    runs = benchmark.runs
    assert np.isnan(runs["train_loss"][index("div(one(x),zero(x))"), 0])
    assert np.isnan(runs["test_value"][index("pow(one(x),zero(x))"), 0])
    assert runs["seconds"][index("max(relu(x),cosh(x))"), 0] == 12.5
    assert benchmark.features.provenance["bins"] == list(LAYERS)
    read = fim.values[index("max(relu(x),cosh(x))")].reshape(len(LAYERS), QUANTILES)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    for row, bins, logs in zip(read, LAYERS, spectrum(1), strict=True):
        assert np.abs(row - np.quantile(logs, levels)).max() < 200 / bins
    assert read_act_bench(path, space=space, chance=0.5).chance == 0.5


DAMAGE = {
    "truncated in a record": (lambda text: text[:-300], "the file is truncated"),
    "truncated between": (lambda text: text[: text.index("}") + 1], "truncated"),
    "no object": (lambda _: "[1, 2]", r"expected an object of records, got '\['"),
    "empty": (lambda _: "", "expected an object of records, got ''"),
    "no records": (lambda _: "{}", "none of its 0 records"),
    "more behind": (lambda text: text + "{}", "expected the end after 'b', got more"),
    "no comma": (lambda _: '{"relu(x)": {} "b": {}}', "Validation Accuracy"),
    "NaN key": (lambda _: "{NaN: {}}", "expected an expression, got NaN"),
    "empty key": (lambda _: '{" ": {}}', "expected an expression"),
    "a number as a record": (
        lambda _: '{"relu(x)": 3}',
        "record 'relu.*expected an object, got 3",
    ),
    "twice": (
        lambda _: '{"a": {"Validation Accuracy": 1}, "a": {"Validation Accuracy": 1}}',
        "'a' appears twice",
    ),
    "bad JSON": (lambda _: '{"relu(x)": {"Validation Accuracy": 0.1,, "b": 1}}', "not valid JSON"),
}


@pytest.mark.parametrize("name", ["file.json", "file.json.gz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, space, name, damage):
    change, message = DAMAGE[damage]
    content = json.dumps({"max(relu(x),cosh(x))": record(), "b": record()})
    path = written(tmp_path / name, change(content))
    with pytest.raises(BenchmarkError, match=message) as caught:
        read_act_bench(path, space=space)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Validation Accuracy": 1.2}, r"expected 'Validation Accuracy' in \[0, 1\], got 1.2"),
        ({"Validation Accuracy": None}, "expected a number for 'Validation Accuracy', got null"),
        ({"Test Accuracy": "0.3"}, "expected a number for 'Test Accuracy', got \"0.3\""),
        ({"Train Loss": [1]}, "expected a number for 'Train Loss'"),
        ({"Train Accuracy": True}, "expected a number for 'Train Accuracy', got true"),
        ({CDF: "x"}, f"expected a list of numbers for '{CDF}'"),
        ({CDF: [0.1, "x"]}, "expected only numbers"),
        ({CDF: [[0.1], [0.2]]}, "expected a flat list"),
        ({SAME: [3]}, "expected texts"),
    ],
)
def test_a_wrong_value_names_its_record(tmp_path, space, changes, message):
    content = {"max(relu(x),cosh(x))": record(), "add(relu(x),erf(x))": record() | changes}
    path = written(tmp_path / "file.json", content)
    with pytest.raises(BenchmarkError, match=message) as caught:
        read_act_bench(path, space=space)
    assert "add(relu(x),erf(x))" in str(caught.value)


def test_files_that_are_no_text(tmp_path, space):
    path = tmp_path / "file.json.gz"
    path.write_bytes(gzip.compress(json.dumps(quirky()).encode())[:-300])
    with pytest.raises(BenchmarkError, match=str(path)):
        read_act_bench(path, space=space)
    path = tmp_path / "file.json"
    path.write_bytes(b'{"\xff\xfe": 1}')
    with pytest.raises(BenchmarkError, match="UTF-8"):
        read_act_bench(path, space=space)
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_act_bench(tmp_path / "none.json", space=space)


def test_memory_is_that_of_the_arrays(tmp_path, space):
    """Vectors as Python lists would be eight times those of float32."""
    catalogue = space.catalogue
    length, count = 13_683, 100
    ends = np.linspace(0, 1, length).round(5).tolist()
    path = tmp_path / "file.json"
    with path.open("w") as file:
        for number in range(count):
            text = json.dumps({catalogue.text(number): record() | {CDF: ends}})
            file.write(text[:-1] if number == 0 else "," + text[1:-1])
        file.write("}")
    catalogue.index("relu(x)")
    tracemalloc.start()
    benchmark = read_act_bench(path, space=space)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert benchmark.measured.sum() == count
    assert peak < 1.5 * path.stat().st_size


# --- histograms and quantiles ---------------------------------------------------------------


def test_layers_end_where_vectors_fall():
    vectors = [np.array(vector(seed), dtype=np.float32) for seed in range(20)]
    vectors.append(np.ones_like(vectors[0]))  # one without any fall
    assert layer_ends(vectors, sum(LAYERS)) == np.cumsum(LAYERS).tolist()


def test_quantiles_of_what_lies_beyond_the_range():
    half = np.array([0.0, 0.25, 0.5], dtype=np.float32)
    quantiles = layer_quantiles(half, [3])
    assert (quantiles[QUANTILES // 2 :] == 100).all()
    assert quantiles[0] == pytest.approx(-100 + 200 / 3 + 200 / 3 * (0.5 / QUANTILES) / 0.25)
    assert layer_quantiles(np.zeros(3, dtype=np.float32), [3]) is None
    assert layer_quantiles(np.array([0.5, 0.2, 1], dtype=np.float32), [3]) is None
    assert layer_quantiles(np.array([0.5, 0.9, 1.4], dtype=np.float32), [3]) is None


def test_distribution_functions_of_quantiles():
    logs = np.random.default_rng(0).normal(-10, 20, (2, 50_000))
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    values = np.array(cdf_vector(np.quantile(logs, levels, axis=1).T))
    for row, sample in zip(values.reshape(2, 100), logs, strict=True):
        below = [(sample <= edge).mean() for edge in np.linspace(-100, 100, 101)[1:]]
        np.testing.assert_allclose(row, below, atol=1 / QUANTILES)
        assert row[-1] == 1


# --- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_what_is_written_is_read_again(tmp_path, name):
    space = load_space("classic")
    benchmark = random_benchmark(space, runs=3)
    generator = np.random.default_rng(0)
    count = len(space.catalogue)
    fim = np.sort(generator.normal(-5, 15, (count, 2, QUANTILES)), axis=2).reshape(count, -1)
    fim[2] = np.nan
    reasons = ("", "", "no gradient", *[""] * (count - 3))
    blocks = {
        **benchmark.features.blocks,
        "fim": Block(fim.astype(np.float32), reasons),
        "fim_null": Block(np.where(np.isnan(fim[:, :2]), np.nan, 0).astype(np.float32), reasons),
    }
    features = FeatureTable(benchmark.features.catalogue_hash, blocks)
    benchmark = dataclasses.replace(benchmark, features=features)
    path = tmp_path / "folder" / name
    write_act_bench(benchmark, path)
    assert [file.name for file in path.parent.iterdir()] == [name]
    first = path.read_bytes()
    write_act_bench(benchmark, path)
    assert path.read_bytes() == first
    again = read_act_bench(path, space=space, chance=0.1)
    np.testing.assert_array_equal(again.measured, benchmark.measured)
    for metric in MEASURED:
        np.testing.assert_allclose(
            again.runs[metric][:-1, 0], np.median(benchmark.runs[metric][:-1], axis=1)
        )
    assert again.unmatched == ()
    read, was = again.features.blocks["fim"], benchmark.features.blocks["fim"]
    assert read.reasons[2] == "no vector in the file"
    inside = slice(3, -3)  # of the outermost ones the histogram knows only the bin
    for index in (0, 1, 5):
        got = read.values[index].reshape(2, -1)[:, inside]
        assert np.abs(got - was.values[index].reshape(2, -1)[:, inside]).max() < 2
    opened = gzip.decompress(first) if name.endswith(".gz") else first
    content = json.loads(opened)
    text = space.catalogue.text(0)
    assert set(content[text]) == {*KEYS.values(), SAME, CDF}
    assert content[text][SAME] == [str(e) for e in space.catalogue.equivalents(0)]


def test_vectors_that_are_given_are_written_instead(tmp_path):
    """Of any length; the functions without one have none, whatever quantiles are kept."""
    space = load_space("classic")
    benchmark = random_benchmark(space)
    count = len(space.catalogue)
    blocks = {
        **benchmark.features.blocks,
        "fim": Block(np.zeros((count, QUANTILES), dtype=np.float32), ("",) * count),
        "fim_null": Block(np.zeros((count, 1), dtype=np.float32), ("",) * count),
    }
    benchmark = dataclasses.replace(
        benchmark, features=FeatureTable(benchmark.features.catalogue_hash, blocks)
    )
    asked = []

    def vectors(index: int) -> np.ndarray | None:
        asked.append(index)
        return None if index == 2 else np.array(vector(index))

    path = tmp_path / "out.json.gz"
    write_act_bench(benchmark, path, vectors=vectors)
    assert asked == np.flatnonzero(benchmark.measured).tolist()
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert content[space.catalogue.text(2)][CDF] is None
    np.testing.assert_allclose(content[space.catalogue.text(1)][CDF], vector(1), atol=1e-6)
    again = read_act_bench(path, space=space)
    fim = again.features.blocks["fim"]
    assert again.features.provenance["bins"] == list(LAYERS)
    assert [index for index in asked if not fim.present[index]] == [2]
    assert fim.reasons[2] == "no vector in the file"

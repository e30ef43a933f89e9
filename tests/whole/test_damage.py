"""Whatever the bytes of kept files become: what is a cache is made again, the rest is told."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks_of_tests import random_benchmark

from bo_act.benchmark.act_bench import write_act_bench
from bo_act.benchmark.journal import RunJournal
from bo_act.benchmark.parquet import load, open_benchmark, save
from bo_act.comparison.compare import compare, load_comparison
from bo_act.content import cache_dir
from bo_act.errors import BenchmarkError
from bo_act.features.store import FeatureStore, Shard
from bo_act.spaces import catalogue_cache
from bo_act.spaces.catalogue_cache import load_catalogue
from bo_act.spaces.space import load_space
from bo_act.training.checkpoint import Checkpoint

DAMAGES = 60  # of each kind of file


def damaged(content: bytes, randomness: random.Random) -> bytes:
    """One of many ways in which bytes go bad, never the same bytes."""
    bad = bytearray(content)
    at = randomness.randrange(len(bad))
    length = randomness.choice([1, 2, 8, 64, 512])
    what = randomness.randrange(8)
    if what == 0:
        del bad[at:]
    elif what == 1:
        del bad[at : at + length]
    elif what == 2:
        bad[at : at + length] = bytes(len(bad[at : at + length]))
    elif what == 3:
        bad[at : at + length] = randomness.randbytes(len(bad[at : at + length]))
    elif what == 4:
        bad[at:at] = randomness.randbytes(length)
    elif what == 5:
        bad += bad[:length]
    else:
        for _ in range(what * 2 - 11):
            bad[randomness.randrange(len(bad))] ^= 1 << randomness.randrange(8)
    return bytes(bad) if bytes(bad) != content else damaged(content, randomness)


def damages(path: Path, count: int = DAMAGES) -> Iterator[int]:
    """Damage a file again and again, each time as it was first, and put it back at the end."""
    content = path.read_bytes()
    randomness = random.Random(path.name)
    for number in range(count):
        path.write_bytes(damaged(content, randomness))
        yield number
    path.write_bytes(content)


def quietly(call: Callable[[], object]) -> list[str]:
    """Call, and return what was warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    said = [str(one.message) for one in told]
    assert all("\n" not in line for line in said)
    return said


def test_a_catalogue_is_built_again(tiny, monkeypatch):
    monkeypatch.setattr(catalogue_cache, "KEPT_FROM", len(tiny))
    first = load_catalogue(tiny)
    (path,) = (cache_dir() / "catalogues").iterdir()

    def same() -> None:
        again = load_catalogue(tiny)
        assert again.hash == first.hash
        np.testing.assert_array_equal(again.keys, first.keys)

    for _ in damages(path):
        (said,) = quietly(same)
        assert "cannot be read and is rebuilt" in said
        assert quietly(same) == []  # it is whole again


def test_a_checkpoint_is_not_used(tmp_path):
    checkpoint = Checkpoint(tmp_path / "one.pt", "key")
    checkpoint.save({"weights": torch.arange(100.0), "step": 3, "curve": [0.5, 0.25]})
    for _ in damages(checkpoint.path):
        found: list[object] = []
        (said,) = quietly(lambda found=found: found.append(checkpoint.load()))
        assert found == [None]
        assert "training starts over" in said
    assert checkpoint.load()["step"] == 3


def shard(*indices: int) -> Shard:
    rows = np.array(indices, dtype=np.float32)[:, None]
    reasons = tuple("" if index % 3 else "none" for index in indices)
    return Shard(np.array(indices), rows + np.arange(6, dtype=np.float32), rows, reasons)


@pytest.mark.parametrize("file", ["manifest.jsonl", "fim-*.parquet", "key.json"])
def test_spectra_are_computed_again(tmp_path, file):
    root = tmp_path / "store"
    store = FeatureStore({"a": 1}, root=root)
    for first in (0, 4, 8):
        store.add(shard(*range(first, first + 4)))
    path = min(store.folder.glob(file))
    shutil.copytree(root, tmp_path / "whole")
    wanted = np.arange(12)
    for _ in damages(path, DAMAGES):
        again = FeatureStore({"a": 1}, root=root)
        for index in again.state(wanted).missing:
            again.add(shard(int(index)))
        rows = {
            int(index): row
            for one in again.shards()
            for index, row in zip(one.indices, one.quantiles, strict=True)
        }
        assert sorted(rows) == list(range(12))
        assert all((row == index + np.arange(6)).all() for index, row in rows.items())
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "whole", root)


def test_a_converted_benchmark_is_converted_again(files):
    benchmark = replace(random_benchmark(load_space("classic"), seed=1), curves=None)
    write_act_bench(benchmark, files / "released.json.gz")
    first = open_benchmark("released.json.gz")
    (path,) = (cache_dir() / "benchmarks").iterdir()
    for _ in damages(path, 5):
        found = []
        (said,) = quietly(lambda found=found: found.append(open_benchmark("released.json.gz")))
        assert found[0].hash == first.hash
        assert "converted again" in said


def told_or_the_same(call: Callable[[], object], first: object) -> bool:
    """Whether damage was told, on one line; if not, nothing may be lost."""
    told = ""
    try:
        found = call()
    except BenchmarkError as error:
        found, told = first, str(error)
    assert found == first
    assert "\n" not in told
    return bool(told)


def test_damage_in_a_benchmark_is_told(tmp_path):
    save(random_benchmark(load_space("classic"), seed=1), tmp_path / "b.parquet")
    first = load(tmp_path / "b.parquet").hash
    for _ in damages(tmp_path / "b.parquet"):
        told_or_the_same(lambda: load(tmp_path / "b.parquet").hash, first)


def test_damage_in_kept_runs_is_told(tmp_path):
    def journal() -> RunJournal:
        return RunJournal(tmp_path / "runs.jsonl", {"what": [1]}, key=("index",))

    def read() -> list[dict[str, object]]:
        with journal() as runs:
            for index in range(5):
                if (index,) not in runs:  # a last line that was cut is made again
                    runs.add({"index": index, "value": [0.5, index, "text"]})
            return [runs[index,] for index in range(5)]

    first = read()
    told = [told_or_the_same(read, first) for _ in damages(tmp_path / "runs.jsonl", DAMAGES)]
    assert sum(told) > len(told) / 2
    assert read() == first


def test_runs_of_the_version_before_are_gone_on_with(tmp_path):
    """Their lines have no checksum."""
    path = tmp_path / "runs.jsonl"
    path.write_text('{"form": 1, "made_from": {"what": [1]}}\n{"index": 0, "value": 1}\n')
    for _ in range(2):
        with RunJournal(path, {"what": [1]}, key=("index",)) as runs:
            assert runs[0,] == {"index": 0, "value": 1}
            if (1,) not in runs:
                runs.add({"index": 1, "value": 2})
    assert path.read_text().splitlines()[2] == '{"index": 1, "value": 2}'


@pytest.mark.parametrize("name", ["steps.parquet", "summary.json"])
def test_damage_in_a_comparison_is_told(files, name):
    compare(["one.parquet"], ["random"], evaluations=5, seeds=2, out=files / "out").save(
        files / "out"
    )
    first = load_comparison(files / "out").summary
    for _ in damages(files / "out" / name, 20):
        told_or_the_same(lambda: load_comparison(files / "out").summary, first)

"""Numbers and files at the edges: one line of an error, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from benchmarks_of_tests import random_benchmark
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from bo_act.benchmark import records
from bo_act.benchmark.act_bench import read_act_bench
from bo_act.benchmark.journal import RunJournal
from bo_act.comparison.replay import initial_design, replay
from bo_act.errors import BenchmarkError, BoActError, SpecError
from bo_act.features.compute import compute_features
from bo_act.fisher.spectra import fim_spectra
from bo_act.search.embedding.embedding import PcaEmbedder
from bo_act.search.embedding.umap import UmapEmbedder
from bo_act.search.searcher import Searcher
from bo_act.spaces.space import load_space
from bo_act.specs import DataSpec, EmbeddingSpec, FeaturesSpec, StudySpec
from bo_act.specs.base import SEEDS, derived_seed, shown, whole
from bo_act.specs.files import read_study
from bo_act.study.sampling.sampler import ActivationSampler

MANY_DIGITS = 10**5_000
NO_SEEDS = [-1, SEEDS, MANY_DIGITS, -MANY_DIGITS, 1.0, True, "0", None, np.int64(-1), float("nan")]

STUDY = """
name = "edges"
space = "classic"
[model]
name = "mlp"
[data]
name = "digits"
"""


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


CLASSIC = load_space("classic")
BENCHMARK = random_benchmark(CLASSIC)

DOORS: dict[str, Callable[[object], object]] = {
    "Searcher": lambda seed: Searcher(seed=seed),
    "ActivationSampler": lambda seed: ActivationSampler(CLASSIC, seed=seed),
    "UmapEmbedder": lambda seed: UmapEmbedder(seed=seed),
    "fim_spectra": lambda seed: fim_spectra(network(), torch.ones(3, 1, 2, 2), None, seed=seed),
    "initial_design": lambda seed: initial_design(BENCHMARK, seed=seed),
}


@pytest.mark.parametrize("seed", NO_SEEDS, ids=shown)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_seed_is_refused_at_every_door(door, seed):
    with pytest.raises(BoActError, match=r"^seed: expected a whole number from 0 to 4,294,967,295"):
        DOORS[door](seed)


@pytest.mark.parametrize("seed", [0, SEEDS - 1, np.int64(3)])
@pytest.mark.parametrize("door", DOORS)
def test_seeds_of_any_size_and_kind_are_taken(door, seed):
    DOORS[door](seed)


@pytest.mark.parametrize("spec", [StudySpec, FeaturesSpec, EmbeddingSpec, DataSpec])
@pytest.mark.parametrize("seed", [-1, SEEDS, MANY_DIGITS, True, 1.0, None], ids=shown)
def test_specs_refuse_what_is_no_seed(spec, seed):
    # Other keys are missing in some, which is another error of the same list.
    with pytest.raises(ValidationError) as caught:
        spec(seed=seed)
    assert ("seed",) in [error["loc"] for error in caught.value.errors(include_input=False)]


def test_the_last_seed_goes_through_a_whole_search():
    sampler = ActivationSampler(BENCHMARK.space, baselines=(), initial=0, seed=SEEDS - 1)
    steps = replay(
        BENCHMARK, sampler, evaluations=8, design=initial_design(BENCHMARK, seed=SEEDS - 1)
    )
    assert len({step.index for step in steps}) == 8


def test_the_last_seed_goes_through_a_whole_study(tmp_path, monkeypatch, bo_act):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.toml").write_text(STUDY)
    few = [
        "trials=5",
        "training.epochs=1",
        "data.train=64",
        "data.validation=32",
        "confirm.seeds=2",
    ]
    changes = [word for one in [*few, f"seed={SEEDS - 1}"] for word in ("--set", one)]
    code, out, err = bo_act("run", "edges.toml", "--quiet", *changes)
    assert code == 0, err
    assert "confirm" in out.lower()  # whose seeds go on from 0


@given(st.integers(0, SEEDS - 1), st.integers(0, 10**9))
def test_seeds_that_follow_are_seeds(seed, more):
    assert 0 <= derived_seed(seed, more) < SEEDS
    assert seed + more >= SEEDS or derived_seed(seed, more) == seed + more


@pytest.mark.parametrize("value", [0, MANY_DIGITS, 2.0, True, "7", None, [], np.inf], ids=shown)
def test_counts_are_whole_numbers_of_a_range(value):
    with pytest.raises(SpecError, match=r"^workers: expected a whole number from 1 to 4,096, got"):
        whole(value, "workers", low=1, high=4_096)


COUNTS: dict[str, Callable[[], object]] = {
    "quantiles": lambda: fim_spectra(network(), torch.ones(3, 1, 2, 2), None, quantiles=0),
    "workers": lambda: compute_features(CLASSIC, workers=0),
    "outputs": lambda: PcaEmbedder(outputs=0),
    "initial": lambda: Searcher(initial=-1),
    "first": lambda: ActivationSampler(CLASSIC, first=1.5),
    "max_retries": lambda: ActivationSampler(CLASSIC, max_retries=-1),
    "evaluations": lambda: replay(
        BENCHMARK, optuna.samplers.RandomSampler(), evaluations=0, design=[]
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_checked_at_every_door(name):
    with pytest.raises(BoActError, match=rf"^{name}: expected a whole number from"):
        COUNTS[name]()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed = -1", "seed: input should be greater than or equal to 0, got -1"),
        (f"seed = {SEEDS}", "seed: input should be less than 4294967296"),
        (f"seed = {10**30}", "seed: expected a number of less than 2^63"),
        (f"seed = {'9' * 5_000}", "not valid TOML: Exceeds the limit (4300 digits)"),
        ("seed = true", "seed: expected a number, got true"),
        ("trials = 3.0", "trials: expected a whole number, got 3.0"),
        ("trials = inf", "trials: expected a whole number, got inf"),
        ("trials = 99999999999", "trials: input should be less than or equal to 2147483647"),
        ("grace = nan", "grace: input should be a finite number"),
        ("grace = true", "grace: expected a number, got true"),
        ("x = " + "[" * 5_000, "not valid TOML: it is too deeply nested"),
    ],
)
def test_numbers_in_study_files(tmp_path, bo_act, change, said):
    file = tmp_path / "edges.toml"
    file.write_text(change + STUDY)
    code, _, error = bo_act("run", str(file), "--quiet")
    assert code == 2
    assert said in " ".join(error.split())
    assert error.count("\n") <= 4
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["9" * 5_000, "[" * 5_000], ids=["digits", "depth"])
def test_overrides_are_read_as_files_are(text):
    with pytest.raises(SpecError, match=r"^--set seed: not valid TOML: (Exceeds|it is too deeply)"):
        read_study("quickstart", {"seed": text})


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "plain.toml").write_text(STUDY)
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    plain, marked = (read_study(str(tmp_path / f"{name}.toml")) for name in ("plain", "marked"))
    assert plain == marked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STUDY.encode("utf-16"), "expected text in UTF-8"),
        (b"\xe9" + STUDY.encode(), "expected text in UTF-8"),
        (b"\0" * 100, "not valid TOML"),
        (b"#" * 2_000_000, "expected at most 1,048,576 bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, said):
    file = tmp_path / "it.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=said) as caught:
        read_study(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "it.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (
        lambda: read_act_bench(path, space=CLASSIC),
        lambda: read_study(str(path)),
    ):
        with pytest.raises(BoActError, match=r"expected a file|no study file"):
            read()


def act_bench_file(folder: Path, text: bytes, *, packed: bool = False) -> Path:
    path = folder / "it.json"
    path.write_bytes(gzip.compress(text, 9) if packed else text)
    return path


GOOD = b'{"tanh(x)": {"Validation Accuracy": 0.5}}'


def test_the_smallest_act_bench_file_is_read(tmp_path):
    for text in (GOOD, b"\xef\xbb\xbf" + GOOD):
        read = read_act_bench(act_bench_file(tmp_path, text), space=CLASSIC, chance=0.1)
        assert int(read.measured.sum()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace(b"0.5", b"9" * 5_000), "Exceeds the limit"),
        (GOOD.replace(b"0.5", b"9" * 400), "number"),
        (GOOD.replace(b"0.5", b"1e999"), r"in \[0, 1\]"),
        (GOOD.replace(b"0.5", b"null"), "expected a number"),
        (GOOD.replace(b"0.5", b"[" * 100_000), "too deeply nested"),
        (GOOD.replace(b"0.5", b'0.5, "Validation Accuracy": 0.6'), "twice"),
        (b'{"' + b"x" * 20_000 + b'": {}}', "expected an expression"),
        (b"[" * 100_000, "expected"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_values_that_no_record_has(tmp_path, text, said, packed):
    with pytest.raises(BenchmarkError, match=said) as caught:
        read_act_bench(act_bench_file(tmp_path, text, packed=packed), space=CLASSIC)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("filling", [b" ", b"9", b"[", b'"a', b'{"a":1},'])
def test_a_gzip_bomb_costs_neither_time_nor_memory(tmp_path, filling, monkeypatch):
    # 200 MB as some hundred kB, and the limit where a file of gigabytes would have it.
    monkeypatch.setattr(records, "_MOST_CHARACTERS", 1 << 26)
    much = filling * ((200 << 20) // len(filling))
    path = act_bench_file(tmp_path, GOOD[:-1] + b', "relu(x)": ' + much, packed=True)
    assert path.stat().st_size < 4 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BenchmarkError):
            read_act_bench(path, space=CLASSIC)
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


def test_no_record_fills_the_memory(tmp_path):
    path = act_bench_file(tmp_path, GOOD[:-1] + b', "relu(x)": {"a": "' + b"x" * (18 << 20))
    with pytest.raises(BenchmarkError, match=r"more than 16,777,216 characters in one piece"):
        read_act_bench(path, space=CLASSIC)


@pytest.mark.parametrize("line", ["[]", "3", "null", '"x"', '{"index": [1]}', "{" * 100_000])
def test_lines_of_a_run_journal_that_are_no_records(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    with RunJournal(path, {"a": 1}, key=("index", "seed")) as journal:
        journal.add({"index": 1, "seed": 0, "value": 0.5})
    kept = path.read_bytes()
    path.write_bytes(kept + line.encode() + b"\n" + json.dumps({}).encode() + b"\n")
    with pytest.raises(BenchmarkError) as caught, RunJournal(path, {"a": 1}, key=("index", "seed")):
        pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    # The lock is free again, and what was whole is still there.
    path.write_bytes(kept)
    with RunJournal(path, {"a": 1}, key=("index", "seed")) as journal:
        assert (1, 0) in journal

"""Building benchmarks: the runs are those of a study, and nothing of them is lost."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bo_act.benchmark.act_bench import read_act_bench
from bo_act.benchmark.build import assemble, build_benchmark, build_order
from bo_act.benchmark.journal import RunJournal
from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.comparison.compare import compare
from bo_act.comparison.metrics import remarks
from bo_act.errors import BenchmarkError, FeatureError
from bo_act.events import Events
from bo_act.features import fisher_worker
from bo_act.features.act_bench import act_bench_vector
from bo_act.specs import ModelSpec, StudySpec
from bo_act.specs.files import read_study
from bo_act.tasks.task import Task
from bo_act.training.trainer import train

SPACE = """
name = "few"
unary = ["identity", "tanh", "exp", "relu"]
binary = ["add", "div"]
schemas = ["binary(unary(x),unary(x))"]
baselines = ["relu(x)"]
"""


def study(folder: Path, **changes) -> StudySpec:
    space = folder / "few.toml"
    space.write_text(SPACE)
    content = {
        "name": "small",
        "space": str(space),
        "model": {"name": "mlp", "options": {"widths": [16]}},
        "data": {"name": "digits", "train": 320, "validation": 200},
        "training": {"epochs": 2, "threads": 1, "device": "cpu", "learning_rate": 0.3},
        "features": {"fim": False},
        "seed": 5,
    }
    return StudySpec.model_validate(content | changes)


def assert_same(one: Benchmark, other: Benchmark) -> None:
    for metric in MEASURED[:-1]:  # but for the time
        np.testing.assert_array_equal(one.runs[metric], other.runs[metric])
    np.testing.assert_array_equal(one.curves, other.curves)
    np.testing.assert_array_equal(one.diverged, other.diverged)
    assert one.provenance == other.provenance


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Benchmark:
    folder = tmp_path_factory.mktemp("built")
    return build_benchmark(study(folder), seeds=2, folder=folder / "runs")


def test_runs_are_those_of_a_study(built, tmp_path):
    task = Task.load(study(tmp_path))
    catalogue = built.space.catalogue
    for text, run in [("add(tanh(x),relu(x))", 0), ("add(exp(x),relu(x))", 1)]:
        index = catalogue.index(text)
        network = task.network(seed=5 + run)(lambda i=index: catalogue.activation(i))
        result = train(network, task.data, task.spec.training, seed=5 + run + 1_000_003)
        np.testing.assert_allclose(built.curves[index, run], result.curve, atol=1e-6)
        sets = {
            "train": task.data.train,
            "validation": task.data.validation,
            "test": task.data.load_test(),
        }
        for name, images in sets.items():
            with torch.no_grad():
                logits = network.eval()(images.inputs).double()
            right = (logits.argmax(1) == images.targets).double().mean()
            loss = -logits.log_softmax(1)[range(len(images)), images.targets].mean()
            assert built.runs[f"{name}_value"][index, run] == pytest.approx(float(right), abs=1e-6)
            assert built.runs[f"{name}_loss"][index, run] == pytest.approx(float(loss), rel=1e-4)
    assert built.seeds == 2
    assert (built.runs["seconds"] > 0).all()


def test_a_diverged_run_is_at_chance(built):
    runs = built.diverged.any(axis=1)
    assert runs.any()
    assert not runs.all()
    assert (built.runs["test_value"][built.diverged] == 0.1).all()
    assert (built.runs["validation_value"][built.diverged] == 0.1).all()
    assert np.isnan(built.runs["train_loss"][built.diverged]).all()
    unfinished = np.isnan(built.curves).any(axis=2)
    np.testing.assert_array_equal(unfinished, built.diverged)


STUDY = """
name = "small"
space = "few.toml"
[model]
name = "mlp"
options = { widths = [32, 16] }
[data]
name = "digits"
train = 320
validation = 200
[training]
epochs = 1
threads = 1
device = "cpu"
[features]
batch_size = 40
seed = 3
precision = "float64"
"""


def test_the_released_form_has_the_vectors_of_the_studys_network(bo_act, tmp_path, monkeypatch):
    """In float32, on the batch of the spectra; what has no factors has no vector."""
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    Path("small.toml").write_text(STUDY)
    task = Task.load(read_study("small.toml"))
    catalogue = task.space.catalogue
    without = catalogue.index("add(tanh(x),relu(x))")

    def fails_for_one(network: torch.nn.Module, *batch: torch.Tensor) -> np.ndarray:
        if any(str(catalogue.expression(without)) in str(m) for m in network.modules()):
            raise FeatureError("not finite")
        return act_bench_vector(network, *batch)

    monkeypatch.setattr(fisher_worker, "act_bench_vector", fails_for_one)
    code, _, err = bo_act("bench", "build", "small.toml", "--seeds", "1", "--folder", "built")
    assert code == 0, err
    assert "vectors in the Act-Bench format: " in err
    content = json.loads(gzip.decompress(Path("built/small.json.gz").read_bytes()))
    kept = open_benchmark("built/small.parquet").features.blocks["fim"]
    assert 5 < kept.present.sum() < len(catalogue)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(3))[:40]
    images, labels = task.data.train.take(order)
    for index in range(len(catalogue)):
        vector = content[catalogue.text(index)]["Fisher log eigenvalue CDF"]
        if index == without or not kept.present[index]:
            assert vector is None
            continue
        torch.manual_seed(3)
        network = task.network(seed=3)(catalogue.activation(index))
        expected = act_bench_vector(network, images, labels)
        assert len(expected) == (65 * 32 // 100 - 1) + (33 * 16 // 100 - 1)
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    read = read_act_bench(Path("built/small.json.gz"), space=task.space)
    assert read.features.provenance["bins"] == [19, 4]
    present = read.features.blocks["fim"].present
    expected = kept.present.copy()
    expected[without] = False
    np.testing.assert_array_equal(present, expected)


class Interrupt(Events):
    """Stops a build after so many runs."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.seen: list[tuple[int, int]] = []

    def runs(self, done: int, total: int, what: str) -> None:
        self.seen.append((done, total))
        if done >= self.after:
            raise KeyboardInterrupt


def test_a_build_goes_on_where_it_was(built, tmp_path):
    total = 2 * len(built)
    with pytest.raises(KeyboardInterrupt):
        build_benchmark(study(tmp_path), seeds=1, folder=tmp_path / "r", events=Interrupt(3))
    lines = (tmp_path / "r" / "runs.jsonl").read_bytes()
    watch = Interrupt(10_000)
    again = build_benchmark(
        study(tmp_path), seeds=2, workers=2, folder=tmp_path / "r", events=watch
    )
    assert watch.seen[0] == (3, total)
    assert watch.seen[-1] == (total, total)
    assert (tmp_path / "r" / "runs.jsonl").read_bytes().startswith(lines)
    assert_same(again, built)
    # Fewer seeds later: what is there and is not asked for stays out.
    assert build_benchmark(study(tmp_path), seeds=1, folder=tmp_path / "r").seeds == 1


def test_functions_are_taken_in_a_shuffled_order_the_baselines_first(tmp_path):
    """In the catalogue's order a build that is stopped has all sums and no quotient."""
    spec = study(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build_benchmark(spec, seeds=2, folder=tmp_path / "r", events=Interrupt(6))
    lines = (tmp_path / "r" / "runs.jsonl").read_text().splitlines()[1:]
    taken = [json.loads(line)["index"] for line in lines]
    task = Task.load(spec)
    catalogue = task.space.catalogue
    assert taken == build_order(task)[:6] != sorted(taken)
    assert sorted(build_order(task)) == list(range(len(catalogue)))
    operators = {catalogue.params(index).get("binary") for index in taken}
    assert operators == {"add", "div"}
    other = Task.load(study(tmp_path, seed=6))
    assert build_order(other) != build_order(task)
    classic = Task.load(study(tmp_path, space="classic"))
    baselines = [classic.space.catalogue.index(one) for one in classic.space.baselines]
    assert build_order(classic)[: len(baselines)] == baselines


def test_a_part_of_a_space_is_a_benchmark(built, tmp_path, bo_act, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = study(tmp_path)
    part = build_benchmark(spec, seeds=2, functions=5, folder=tmp_path / "r")
    order = build_order(Task.load(spec))
    assert part.is_part
    assert part.provenance["order"] == {"first": "baselines", "shuffled_by": 5}
    assert sorted(np.flatnonzero(part.measured)) == sorted(order[:5])
    for metric in MEASURED[:-1]:
        np.testing.assert_array_equal(part.runs[metric][order[:5]], built.runs[metric][order[:5]])
    # What is there already is in it, too; with all of them it is the whole.
    assert build_benchmark(spec, seeds=2, functions=1, folder=tmp_path / "r").measured.sum() == 5
    save(part, tmp_path / "part.parquet")
    assert open_benchmark("part.parquet").is_part
    code, _, err = bo_act("bench", "show", "part.parquet")
    assert code == 0, err
    found = compare(
        ["part.parquet"], ["random", "optuna_random", "default"], evaluations=4, seeds=3
    )
    assert set(found.steps["index"]) <= set(order[:5])
    told = found.summary["benchmarks"]["part.parquet"]
    assert (told["functions"], told["measured"]) == (len(part), 5)
    assert f"5 of {len(part)} functions" in " ".join(remarks(found.summary))
    with pytest.raises(BenchmarkError, match="has only 4 measured functions with features"):
        compare(["part.parquet"], ["random"], evaluations=5, seeds=1)
    whole = build_benchmark(spec, seeds=2, folder=tmp_path / "r")
    assert not whole.is_part
    assert_same(whole, built)
    with pytest.raises(BenchmarkError, match="functions: expected a whole number from 1"):
        build_benchmark(spec, functions=0, folder=tmp_path / "r")


def test_only_the_best_are_repeated(built, tmp_path, bo_act, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = np.where(built.diverged[:, 0], -1, built.runs["validation_value"][:, 0])
    worst, count = int(first.argmin()), len(built)
    space = SPACE.replace("relu(x)", built.space.catalogue.text(worst))
    Path("mine.toml").write_text(space)
    spec = study(tmp_path, space="mine.toml")
    watch = Interrupt(count + 2)
    with pytest.raises(KeyboardInterrupt):
        build_benchmark(spec, seeds=2, repeat_best=6, folder=tmp_path / "r", events=watch)
    assert watch.seen[0] == (0, count + 6)
    watch = Interrupt(10_000)
    found = build_benchmark(spec, seeds=2, repeat_best=6, folder=tmp_path / "r", events=watch)
    assert count + 2 in [done for done, _ in watch.seen]
    assert watch.seen[-1] == (count + 6, count + 6)
    repeated = np.isfinite(found.runs["validation_value"][:, 1])
    assert repeated.sum() == 6
    assert repeated[worst]  # the only baseline
    assert sorted(first[repeated])[1] >= first[~repeated].max()
    for metric in MEASURED[:-1]:
        np.testing.assert_array_equal(found.runs[metric][:, 0], built.runs[metric][:, 0])
        np.testing.assert_array_equal(found.runs[metric][repeated], built.runs[metric][repeated])
    assert not found.is_part
    save(found, tmp_path / "best.parquet")
    code, out, err = bo_act("bench", "show", "best.parquet")
    assert code == 0, err
    assert f"{count} functions, 1 to 2 runs each" in out
    assert "Selection bias of the best, among the 6 functions with all runs" in out
    # A search that observes the second run may propose the other functions, too.
    for run in (0, 1):
        alone = found.of_runs([run])
        assert alone.measured.all()
        assert alone.seeds == 1
        expected = built.runs["test_value"][:, run]
        np.testing.assert_array_equal(alone.test[repeated], expected[repeated])
        np.testing.assert_array_equal(alone.test[~repeated], built.runs["test_value"][~repeated, 0])
    told = compare(["best.parquet"], ["random"], evaluations=12, seeds=2, told="run")
    assert told.steps.groupby("seed")["index"].nunique().tolist() == [12, 12]
    # All are repeated later.
    assert_same(build_benchmark(spec, seeds=2, folder=tmp_path / "r"), built)
    with pytest.raises(BenchmarkError, match="repeat_best: expected a whole number from 1"):
        build_benchmark(spec, repeat_best=0, folder=tmp_path / "r")
    with pytest.raises(BenchmarkError, match="seeds = 1 has none: give more seeds, or leave it"):
        build_benchmark(spec, seeds=1, repeat_best=6, folder=tmp_path / "r")


def test_errors_beyond_float32_are_values(tmp_path):
    spec = study(tmp_path, data={"name": "diabetes"}, metric={"name": "mse"})
    task = Task.load(spec.model_copy(update={"model": ModelSpec(name="tabular_mlp")}))
    values = dict.fromkeys(MEASURED, 1e60) | {"curve": [0.5, 1e60]}
    records = [
        {"index": index, "seed": 0, "status": "completed"} | values
        for index in range(len(task.space.catalogue))
    ]
    found = assemble(task, records, task.features(), seeds=1, name="large")
    save(found, tmp_path / "large.parquet")
    again = open_benchmark(str(tmp_path / "large.parquet"))
    assert again.measured.all()
    assert again.curves is not None
    assert np.isfinite(again.curves).all()
    assert np.isfinite(again.values).all()
    assert (again.values > 1e38).all()


def test_runs_of_something_else_are_refused(tmp_path):
    build_benchmark(study(tmp_path), seeds=1, functions=1, folder=tmp_path / "r")
    training = {"epochs": 3, "threads": 1, "device": "cpu", "learning_rate": 0.3}
    with pytest.raises(BenchmarkError, match=r"training\.epochs \(2 there, 3 now\)"):
        build_benchmark(study(tmp_path, training=training), folder=tmp_path / "r")


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"workers": 0}])
def test_numbers_that_make_no_sense(tmp_path, changes):
    with pytest.raises(BenchmarkError, match=rf"^{next(iter(changes))}: expected a whole number"):
        build_benchmark(study(tmp_path), folder=tmp_path, **changes)


# --- the journal ------------------------------------------------------------------------------


def journal(path: Path, made_from: object = 1) -> RunJournal:
    return RunJournal(path, {"what": made_from}, key=("index", "seed"))


def test_a_half_written_line_is_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    with journal(path) as runs:
        runs.add({"index": 1, "seed": 0, "value": 0.5})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with journal(path) as runs:
            assert ((1, 0) in runs) == (length == len(whole))
            runs.add({"index": 1, "seed": 0, "value": 0.5})
        assert path.read_bytes() == whole


def test_the_first_of_two_equal_runs_stays(tmp_path):
    path = tmp_path / "runs.jsonl"
    with journal(path) as runs:
        runs.add({"index": 1, "seed": 0, "value": 1})
        runs.add({"index": 1, "seed": 0, "value": 2})
    with journal(path) as runs:
        assert runs[1, 0]["value"] == 1


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"index": 1}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    with journal(path) as runs:
        runs.add({"index": 0, "seed": 0})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BenchmarkError, match=r"runs.jsonl, line 3 is damaged"), journal(path):
        pass
    with pytest.raises(BenchmarkError, match="line 3"), journal(path):  # the lock is free again
        pass


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "runs.jsonl"
    with (
        journal(path),
        pytest.raises(BenchmarkError, match="another process is working"),
        journal(path),
    ):
        pass


# --- kills ------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from test_build import study
from bo_act.benchmark.build import build_benchmark
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    build_benchmark(study(folder), seeds=2, workers=2, folder=folder / "r")
"""


@pytest.mark.slow
def test_nothing_is_lost_by_kill_9(built, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    journal_file = tmp_path / "r" / "runs.jsonl"
    randomness = random.Random(0)

    def lines() -> int:
        return len(journal_file.read_bytes().splitlines()) if journal_file.exists() else 0

    kills = 0
    while kills < 3:
        before = lines()
        process = subprocess.Popen(
            [sys.executable, "script.py", str(tmp_path)], cwd=tmp_path, env=environment
        )
        while lines() <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(randomness.uniform(0, 0.05))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills > 0
    kept = journal_file.read_bytes()
    assert_same(build_benchmark(study(tmp_path), seeds=2, folder=tmp_path / "r"), built)
    keys = [json.loads(line) for line in journal_file.read_bytes().splitlines()[1:]]
    runs = [(record["index"], record["seed"]) for record in keys]
    assert len(set(runs)) == len(runs) == 2 * len(built)
    assert journal_file.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])

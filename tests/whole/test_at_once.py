"""Several processes that do the same work at once, each of which has to succeed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from benchmarks_of_tests import random_benchmark

from bo_act.benchmark.act_bench import write_act_bench
from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.comparison.compare import compare
from bo_act.features.compute import compute_features
from bo_act.report.page import write
from bo_act.spaces import catalogue_cache
from bo_act.spaces.catalogue_cache import load_catalogue
from bo_act.spaces.space import load_space
from bo_act.specs import FeaturesSpec, StudySpec
from bo_act.study.running.runner import _keep_spec
from bo_act.training.checkpoint import Checkpoint

AT_ONCE = 4
ONCE = ("comparison's figures", "conversion of a file of Act-Bench")  # takes seconds; done once
SPEC = StudySpec.model_validate({"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits"}})


def at_once(work: Callable[[], object]) -> None:
    """Run the same work in processes that begin together."""
    context = get_context("fork")
    barrier = context.Barrier(AT_ONCE)
    errors = context.SimpleQueue()

    def run() -> None:
        torch.set_num_threads(1)
        barrier.wait()
        try:
            work()
        except BaseException:
            errors.put(traceback.format_exc())

    processes = [context.Process(target=run) for _ in range(AT_ONCE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert errors.empty(), errors.get()


def left(folder: Path) -> list[str]:
    names = (path.name for path in folder.rglob(".*"))
    return sorted(name for name in names if not name.startswith(".coverage"))


@pytest.fixture(scope="module")
def one():
    return random_benchmark(load_space("classic"), seed=1)


def work_of(what: str, folder: Path, one: object) -> Callable[[], object]:
    """Something that is written, by several, several times one after the other."""
    if what == "conversion of a file of Act-Bench":
        write_act_bench(one, folder / "released.json")
        return lambda: open_benchmark(str(folder / "released.json"))
    if what == "comparison's figures":
        save(one, folder / "one.parquet")
        found = compare([str(folder / "one.parquet")], ["random"], evaluations=5, seeds=2)
        return lambda: found.save(folder / "out")
    tiny = load_space("classic")
    return {
        "catalogue": lambda: load_catalogue(tiny),
        "benchmark": lambda: save(one, folder / "b.parquet"),
        "file of Act-Bench": lambda: write_act_bench(one, folder / "b.json.gz"),
        "report": lambda: write("<p>" * 100_000, folder / "report.html"),
        "study.json": lambda: _keep_spec(SPEC),
        "spectra": lambda: spectra(tiny),
        "checkpoint": lambda: Checkpoint(folder / "a.pt", "key").save({"a": torch.zeros(10_000)}),
    }[what]


def spectra(space: object) -> object:
    images = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return compute_features(
        space,
        network=lambda activation: torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 5), activation(), torch.nn.Linear(5, 3)
        ),
        inputs=images,
        targets=torch.arange(16) % 3,
        spec=FeaturesSpec(quantiles=8),
        key={"network": "small"},
    )


@pytest.mark.parametrize(
    "what",
    [
        "conversion of a file of Act-Bench", "comparison's figures", "catalogue", "benchmark",
        "file of Act-Bench", "report", "study.json", "spectra", "checkpoint",
    ],
)  # fmt: skip
def test_all_succeed(tmp_path, monkeypatch, one, what):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue_cache, "KEPT_FROM", 1)
    work = work_of(what, tmp_path, one)
    at_once(lambda: [work() for _ in range(1 if what in ONCE else 3)])
    assert left(tmp_path) == []


def test_two_trainings_of_one_trial_share_no_file(tmp_path):
    """Each reads a state that one of them wrote, never half of two."""
    checkpoint = Checkpoint(tmp_path / "a.pt", "key")

    def train() -> None:
        for step in range(30):
            checkpoint.save({"step": step, "same": torch.full((50_000,), step)})
            state = checkpoint.load()
            assert state is not None
            assert bool((state["same"] == state["step"]).all())

    at_once(train)
    assert left(tmp_path) == []


def test_what_is_written_is_what_one_would_have_written(tmp_path, one):
    at_once(lambda: save(one, tmp_path / "b.parquet"))
    save(one, tmp_path / "alone.parquet")
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()

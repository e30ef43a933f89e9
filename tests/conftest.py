"""What all tests share: caches of their own, one thread, and spaces that are built once."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks_of_tests import random_benchmark
from hypothesis import settings

from bo_act import cli
from bo_act.benchmark.parquet import save
from bo_act.benchmark.table import Benchmark
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec

# Of processes that tests start: several share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiling or fitting may be slow once; a deadline would only make that test fail at times.
settings.register_profile("bo-act", deadline=None)
settings.load_profile("bo-act")


def pytest_collection_finish() -> None:
    # What is imported stays: a twelfth of the time would go into looking through it for garbage.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Small tensors: threads cost more than they bring, and test processes share the cores.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quick_timings(monkeypatch):
    # Reports time operators; how long these take is a matter of test_costs.py, which says so.
    monkeypatch.setattr("bo_act.spaces.costs._SECONDS", 1e-4)


_ROOMS_OF_STUDIES = ("docs", "report", "study", "tasks")


@pytest.fixture(scope="session")
def _cache_of_studies(tmp_path_factory) -> Path:
    return Path(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_cache(request, tmp_path, monkeypatch, _cache_of_studies):
    """An empty cache; where many studies are run, one for all, as they need the same spectra."""
    shared = request.path.parent.name in _ROOMS_OF_STUDIES
    cache = _cache_of_studies if shared else tmp_path / "cache"
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(cache))


@pytest.fixture(scope="session")
def act_bench() -> Space:
    return load_space("act_bench")


@pytest.fixture(scope="session")
def act_bench_catalogue(act_bench) -> Catalogue:
    return act_bench.catalogue


@pytest.fixture(scope="session")
def tiny() -> Space:
    """48 expressions with constants, a pole and a function without features."""
    return Space(
        SpaceSpec(
            name="tiny",
            unary=("zero", "one", "identity", "exp", "tanh"),
            binary=("add", "div"),
            schemas=("binary(unary(x),unary(x))",),
            expressions=("relu(x)", "square(x)"),
            baselines=("relu(x)", "tanh(x)"),
        )
    )


@pytest.fixture(scope="session")
def one() -> Benchmark:
    """A benchmark with values in no relation to its features."""
    return random_benchmark(load_space("classic"), seed=1)


@pytest.fixture(scope="session")
def _benchmark_files(one, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    two = random_benchmark(one.space, seed=2)
    for name, benchmark in (("one", one), ("two", two)):
        save(dataclasses.replace(benchmark, name=name), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def files(_benchmark_files, tmp_path, monkeypatch) -> Path:
    """The working folder, with two benchmarks of one space."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(_benchmark_files, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 300 kB, mounted in a folder; its size can be changed by mounting it again."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a disk of its own cannot be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def bo_act(capfd, monkeypatch):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bo-act", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        told = capfd.readouterr()
        return code, told.out, told.err

    return run

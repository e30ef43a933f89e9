"""Ray tasks: the same numbers, and a Ray worker that is killed."""

from __future__ import annotations

import sys

import pytest
from processes import environment
from small_features import Net, a_few, assert_same_table, features, kept

from bo_act.errors import FeatureError, MissingExtraError, WorkerError
from bo_act.features import compute as computing
from bo_act.features import ray_tasks
from bo_act.spaces.space import Space


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 8)


@pytest.fixture
def few() -> Space:
    return a_few()


def test_without_ray(few, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bo-act\[ray\]'; without it"):
        features(few, workers=2, executor="ray")


def test_no_cluster_at_the_address(few, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(FeatureError, match="cannot be reached at nonsense"):
        features(few, workers=2, executor="ray")


@pytest.mark.slow
def test_a_killed_ray_worker_costs_nothing_but_time(few, tmp_path, monkeypatch, capfd):
    ray = pytest.importorskip("ray")
    # Ray's workers find bo_act and the helpers of tests as this process does.
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    ray_tasks.import_ray()
    fresh = features(few, cache=tmp_path / "alone")
    capfd.readouterr()
    ray_tasks.start_ray(ray, cpus=2)
    try:
        table = features(
            few,
            Net("die_once", tmp_path),
            cache=tmp_path / "killed",
            workers=2,
            executor="ray",
        )
        assert (tmp_path / "died").exists()
        assert_same_table(table, fresh)
        assert kept(tmp_path / "killed") == kept(tmp_path / "alone")
        assert ray.is_initialized()  # what was not started here is not stopped here

        with pytest.raises(ZeroDivisionError, match="a defect of the network"):
            features(few, Net("fail"), key=None, workers=2, executor="ray")
        with pytest.raises(WorkerError, match=r"3 workers died .*add"):
            features(few, Net("die"), key=None, workers=2, executor="ray")
    finally:
        ray.shutdown()
    told = capfd.readouterr()
    # A Ray that was started outside of compute_features may say after it that a worker has died.
    said = [line for line in (told.out + told.err).splitlines() if "(raylet)" not in line]
    assert said == []

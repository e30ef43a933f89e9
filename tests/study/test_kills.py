"""Two hundred short trials, whose workers are killed and whose server restarts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from processes import descendants, environment
from servers import PostgreSQL

from bo_act.errors import StorageError
from bo_act.specs.files import read_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import DEATHS

STUDY = """
name = "killed"
trials = {trials}
model = {{ name = "mlp", options = {{ widths = [16] }} }}
data = {{ name = "digits", train = 256, validation = 200 }}
training = {{ epochs = 12, batch_size = 64, threads = 1, device = "cpu" }}
features = {{ fim = false }}
confirm = {{ seeds = 0 }}
"""


def trials_of(storage: str) -> list[optuna.trial.FrozenTrial]:
    try:
        return load_study(read_study("study.toml", {"storage": json.dumps(storage)})).trials
    except StorageError:
        return []


def workers_of(parent: int, mark: bytes) -> list[int]:
    found = []
    for pid in descendants(parent) - {parent}:
        try:
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def disturbed(storage, *, workers, trials, kills, server=None, executor="process"):
    """Run a study while workers are killed at random and the server restarts twice."""
    Path("study.toml").write_text(STUDY.format(trials=trials))
    mark = b"\0worker\0" if executor == "process" else b"ray::_work"
    with Path("stderr.txt").open("w") as told:
        run = subprocess.Popen(
            [
                *[sys.executable, "-m", "bo_act.cli", "run", "study.toml", "--json", "-q"],
                *["--storage", storage, "--workers", str(workers), "--executor", executor],
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
        )
    randomness = random.Random(0)
    killed = restarts = 0
    while run.poll() is None:
        done = sum(t.state.is_finished() for t in trials_of(storage))
        # Spread over the study: a kill each few trials, the restarts after a third and two.
        if server and restarts < 2 and done > trials * (restarts + 1) / 3:
            server.stop()
            time.sleep(1)
            server.start()
            restarts += 1
        elif done and killed < kills and done >= killed * trials / (kills + 2):
            time.sleep(randomness.uniform(0, 1))
            alive = workers_of(run.pid, mark)
            if alive:
                os.kill(randomness.choice(alive), signal.SIGKILL)
                killed += 1
        time.sleep(0.1)
    assert run.returncode == 0, Path("stderr.txt").read_text()[-3000:]
    assert killed == kills
    assert restarts == (2 if server else 0)
    found = trials_of(storage)
    states = Counter(t.state.name for t in found)
    deaths = sum(int(t.system_attrs.get(DEATHS, 0)) for t in found)
    print(
        f"{executor}, {storage.split(':')[0]}: {dict(states)}, {killed} kills, {restarts}"
        f" restarts, {deaths} trials taken over"
    )
    complete = [t for t in found if t.state == TrialState.COMPLETE]
    assert states == {"COMPLETE": trials}
    functions = Counter(t.user_attrs["index"] for t in complete)
    assert len(functions) == trials
    for trial in complete:  # a training that diverges ends early
        if trial.user_attrs["status"] == "completed":
            assert sorted(trial.intermediate_values) == list(range(12)), trial
    assert 0 < deaths <= kills


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_workers_are_killed_and_postgresql_restarts(capsys):
    server = PostgreSQL()
    try:
        with capsys.disabled():
            disturbed(server.url, workers=6, trials=200, kills=20, server=server)
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_workers_on_a_journal_file_are_killed(capsys, tmp_path):
    with capsys.disabled():
        disturbed(str(tmp_path / "study.log"), workers=6, trials=200, kills=20)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_workers_on_ray_are_killed(capsys, tmp_path):
    pytest.importorskip("ray")
    with capsys.disabled():
        disturbed(str(tmp_path / "study.db"), workers=2, trials=30, kills=4, executor="ray")

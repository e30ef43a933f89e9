"""Workers in containers: name spaces of process numbers and host names of their own, one volume."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from processes import descendants, environment

from bo_act.errors import StorageError
from bo_act.specs.files import read_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import DEATHS

FILE = """
name = "shared"
space = "few.toml"
trials = {trials}
grace = 3.0
objective = "train.py:objective"
"""

SPACE = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""

TRAIN = """
import socket, time


def objective(trial, activation):
    with open("trained.log", "a") as log:
        log.write(f"{socket.gethostname()} {trial.number}\\n")
    ends = time.monotonic() + float(open("seconds.txt").read())
    while time.monotonic() < ends:
        time.sleep(0.01)
    # Whose result it is can be seen by its value.
    return {"one": 0.1, "two": 0.2}.get(socket.gethostname(), 0.5)
"""

INSIDE = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]


def _can_unshare() -> bool:
    if shutil.which("unshare") is None or not Path("/proc/self/ns/pid").exists():
        return False
    done = subprocess.run([*INSIDE, "hostname", "x"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _can_unshare(), reason="needs root and unshare of util-linux"),
]


@pytest.fixture(params=["study.db", "study.log"])
def storage(request, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(SPACE)
    (tmp_path / "train.py").write_text(TRAIN)
    return request.param


def begin(trials: int, seconds: float) -> None:
    Path("shared.toml").write_text(FILE.format(trials=trials))
    Path("seconds.txt").write_text(str(seconds))


def container(
    host: str, storage: str, told: str = "", *, proc: bool = True
) -> subprocess.Popen[bytes]:
    """Start a worker in a container of this host name, with a /proc of its own or without."""
    worker = [sys.executable, "-m", "bo_act.cli", "worker", "shared.toml", "--storage", storage]
    with Path(told or f"{host}.txt").open("wb") as stderr:
        return subprocess.Popen(
            [
                *(one for one in INSIDE if proc or one != "--mount-proc"),
                *["sh", "-c", 'hostname "$0"; exec "$@"', host, *worker],
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()  # and with it all in its name space
    worker.wait()


def trials_of(storage: str) -> list[optuna.trial.FrozenTrial]:
    try:
        return load_study(read_study("shared.toml", {"storage": f'"{storage}"'})).trials
    except StorageError:
        return []


def wait_for(what: Callable[[], object], *workers: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, [p.read_text() for p in Path().glob("*.txt")]
        assert not any(worker.poll() for worker in workers), "a worker failed"
        time.sleep(0.02)


def trained() -> list[str]:
    log = Path("trained.log")
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    ("hosts", "proc"),
    [(("same", "same"), True), (("same", "same"), False), (("one", "two"), True)],
    ids=["same name", "same name and no proc", "two names"],
)
def test_two_containers_leave_each_others_trials_alone(storage, hosts, proc):
    """Each trial is trained once, though some take longer than the grace period."""
    begin(trials=10, seconds=1.0)
    first, second = (
        container(host, storage, f"{n}.txt", proc=proc) for n, host in enumerate(hosts)
    )
    wait_for(lambda: len(trained()) > 3, first, second)
    Path("seconds.txt").write_text("5.0")  # longer than the grace period
    wait_for(lambda: len(trained()) > 5, first, second)
    Path("seconds.txt").write_text("0.5")
    assert [first.wait(timeout=120), second.wait(timeout=120)] == [0, 0]
    trials = trials_of(storage)
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 10}
    assert len({t.user_attrs["index"] for t in trials}) == 10
    assert sorted(line.split()[1] for line in trained()) == sorted(map(str, range(10)))
    assert not [t.number for t in trials if DEATHS in t.system_attrs]
    assert not list(Path().glob("*.beat-*"))


@pytest.mark.parametrize("host", ["one", "two"], ids=["same name", "new name"])
def test_a_killed_container_that_is_started_again_goes_on(storage, host):
    begin(trials=3, seconds=0.2)
    before = container("one", storage)
    wait_for(lambda: len(trained()) == 2, before)
    Path("seconds.txt").write_text("600")
    wait_for(lambda: len(trained()) == 3, before)
    stop(before)
    Path("seconds.txt").write_text("0.2")
    # They get the name spaces' numbers that are free now, which are given anew.
    others = [subprocess.Popen([*INSIDE, "sleep", "300"]) for _ in range(3)]
    again = container(host, storage, "again.txt")
    try:
        assert again.wait(timeout=120) == 0
    finally:
        for other in others:
            stop(other)
    trials = trials_of(storage)
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 3}
    assert trained() == ["one 0", "one 1", "one 2", f"{host} 2"]
    assert [t.system_attrs.get(DEATHS) for t in trials] == [None, None, 1]
    told = Path("again.txt").read_text()
    assert "waiting for trial 2 of one (pid " in told
    assert "unless a heartbeat arrives" in told
    assert told.count("waiting") <= 2  # once, and once more where that changes


def test_who_was_stopped_for_too_long_leaves_the_trial(storage):
    begin(trials=2, seconds=2.0)
    first = container("one", storage)
    wait_for(lambda: len(trained()) == 1, first)
    stopped = descendants(first.pid) - {first.pid}
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    second = container("two", storage)
    wait_for(lambda: "two 0" in trained(), second)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert [first.wait(timeout=120), second.wait(timeout=120)] == [0, 0]
    trials = trials_of(storage)
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 2}
    assert trials[0].value == 0.2
    assert trials[0].system_attrs[DEATHS] == 1
    assert "trial 0 was taken over by two (pid " in Path("one.txt").read_text()


def test_containers_are_killed_and_started_again(storage, capsys):
    """Under the same name or another, while they train and while they begin."""
    begin(trials=36, seconds=0.5)  # nearly all functions there are
    randomness = random.Random(0)
    names = iter(range(1000))

    def start() -> subprocess.Popen[bytes]:
        host = randomness.choice(["same", f"host-{next(names)}"])
        return container(host, storage, f"{next(names)}.txt")

    workers, kills = [start(), start()], 0
    while kills < 8:
        least = len(trained()) + randomness.randrange(2, 6)
        wait_for(lambda least=least: len(trained()) >= least)
        place = randomness.randrange(2)
        stop(workers[place])
        kills += 1
        workers[place] = start()
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    trials = trials_of(storage)
    deaths = sum(trial.system_attrs.get(DEATHS, 0) for trial in trials)
    often = Counter(line.split()[1] for line in trained())
    with capsys.disabled():
        states = dict(Counter(trial.state.name for trial in trials))
        print(f"{storage}: {states}, {kills} kills, {deaths} trials taken over")
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 36}
    assert len({trial.user_attrs["index"] for trial in trials}) == 36
    # Trained again is what was taken over, and nothing else.
    assert sum(often.values()) <= 36 + deaths
    assert 0 < deaths <= kills
    assert not list(Path().glob("*.beat-*"))

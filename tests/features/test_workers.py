"""Worker processes: the same numbers, and what happens when one of them is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import killed_ten_times
from processes import descendants, environment
from small_features import (
    PLACE,
    Net,
    a_few,
    assert_same_table,
    features,
    kept,
)

from bo_act import process_pool
from bo_act.benchmark.build import BuildJob
from bo_act.comparison.job import CompareJob
from bo_act.dependencies.torch_internals import OPTIMIZER_IMPORTS
from bo_act.errors import DataError, FeatureError, WorkerError
from bo_act.features import compute as computing
from bo_act.features.fisher_worker import FisherJob
from bo_act.spaces.space import Space
from bo_act.study.results.confirmation_runs import ConfirmationJob


class Unportable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.fixture
def few() -> Space:
    return a_few()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 8)


def environment_of(name: str) -> str | None:
    return os.environ.get(name)


def look_up(device: torch.device):
    return environment_of


def test_workers_have_the_environment_of_their_start(monkeypatch):
    """They are forked by a server, whose environment is that of the first pool."""
    for value in ("one", "two"):
        monkeypatch.setenv("BO_ACT_OF_THIS_TEST", value)
        device = torch.device("cpu")
        pieces = ["BO_ACT_OF_THIS_TEST"]
        answers = process_pool.compute_in_processes(look_up, pieces, device=device, workers=1)
        assert list(answers) == [value]


def test_idle_workers_clean_up(monkeypatch):
    """Killed ones leave semaphores, which Python reports at its end."""
    codes = []
    end = process_pool._Worker.end

    def noted(worker, patience: float = 0.0):
        codes.append(end(worker, patience))
        return codes[-1]

    monkeypatch.setattr(process_pool._Worker, "end", noted)
    device = torch.device("cpu")
    answers = process_pool.compute_in_processes(look_up, ["a", "b"], device=device, workers=1)
    assert list(answers) == [None, None]
    assert codes == [0]


IMPORTS = """
import sys
import torch

def asked(*_):
    raise SystemExit("asked for a GPU")

torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda.is_available = asked
before = set(sys.modules)
torch.optim.SGD([torch.zeros(1)])
print(*set(sys.modules) - before)
for name in sys.argv[1:]:
    __import__(name)
"""


def test_what_workers_import_before_the_fork_asks_for_no_gpu():
    """CUDA does not survive a fork once it was asked for; and optimizers import the compiler."""
    jobs = [job.__module__ for job in (BuildJob, CompareJob, ConfirmationJob, FisherJob)]
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS, *OPTIMIZER_IMPORTS, *jobs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(OPTIMIZER_IMPORTS) <= set(done.stdout.split())


# --- the same, and faults -------------------------------------------------------------------


def test_a_killed_worker_costs_nothing_but_time(few, tmp_path):
    fresh = features(few, cache=tmp_path / "alone")
    seen = []
    table = features(
        few,
        Net("die_once", tmp_path),
        cache=tmp_path / "killed",
        workers=2,
        progress=lambda *counts: seen.append(counts),
    )
    assert (tmp_path / "died").exists()
    assert_same_table(table, fresh)
    assert kept(tmp_path / "killed") == kept(tmp_path / "alone")
    total = len(few.catalogue)
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    (manifest,) = tmp_path.glob("killed/*/manifest.jsonl")
    assert len(manifest.read_text().splitlines()) == len(kept(tmp_path / "alone")) > 3


@pytest.mark.slow
def test_functions_that_no_worker_survives_are_named(few, tmp_path, monkeypatch):
    monkeypatch.setattr(process_pool, "ATTEMPTS", 2)
    with pytest.raises(WorkerError, match=r"2 workers died .*exit code -9.* and 5 more") as caught:
        features(few, Net("die_late", tmp_path), cache=tmp_path, workers=2)
    assert PLACE in str(caught.value) or "of x" in str(caught.value)
    # All that the other worker had time for is kept, and the rest can be computed.
    before = set(kept(tmp_path))
    assert before
    assert_same_table(features(few, cache=tmp_path), features(few, key=None))
    assert before < set(kept(tmp_path))


def test_what_a_worker_raises_arrives(few, monkeypatch):
    monkeypatch.setattr(computing, "SHARD", 1000)  # one piece, and so one worker
    with pytest.raises(ZeroDivisionError, match="a defect of the network") as caught:
        features(few, Net("fail"), workers=2)
    assert "in fail" in "".join(caught.value.__notes__)  # the worker's own traceback


def test_errors_are_made_to_travel():
    ours = DataError("the images have gone")
    assert process_pool.portable(ours) is ours
    assert not hasattr(ours, "__notes__")
    instead = process_pool.portable(Unportable("cannot", "travel"))
    assert isinstance(instead, WorkerError)
    assert str(instead) == "a worker failed: Unportable: cannot travel"


def test_a_network_that_cannot_travel(few):
    def inner(activation):
        return Net()(activation)

    with pytest.raises(WorkerError, match=r"top level of a module .* workers=1"):
        features(few, inner, workers=2)


@pytest.mark.parametrize("changes", [{"workers": 0}, {"executor": "threads"}])
def test_workers_that_make_no_sense(few, changes):
    with pytest.raises(FeatureError, match=r"^workers: expected a whole|the executor 'process' or"):
        features(few, **changes)


SCRIPT = """
import sys
from pathlib import Path
from small_features import Net, a_few, features
from bo_act.features import compute
compute.SHARD = 1000
features(a_few(), Net({what!r}, Path({folder!r})), workers=2)
"""


@pytest.mark.slow
def test_a_script_that_workers_cannot_import():
    done = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT.format(what="", folder=""),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 workers ended (exit code 1) before they could begin" in done.stderr
    assert "under if __name__ == '__main__':" in done.stderr


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_workers_end_with_their_parent(tmp_path, how):
    script = tmp_path / "script.py"
    body = SCRIPT.format(what="hang", folder=str(tmp_path)).strip().splitlines()
    # A shell's background jobs, and all that they start, ignore Ctrl-C.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    guarded = [*body[:-1], "if __name__ == '__main__':", "    " + heed, "    " + body[-1]]
    script.write_text("\n".join(guarded))
    parent = subprocess.Popen(
        [sys.executable, script],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    everyone = descendants(parent.pid)
    assert int((tmp_path / "hanging").read_text()) in everyone
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does it: everyone gets it
    else:
        parent.send_signal(how)
    stderr = parent.communicate(timeout=20)[1]
    deadline = time.monotonic() + 20
    while any(map(is_running, everyone)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in everyone if is_running(pid)]
    assert stderr.count("Traceback") == (1 if how == signal.SIGINT else 0), stderr


def test_workers_share_out_gpus_and_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    anyone, second, cpu = map(torch.device, ("cuda", "cuda:1", "cpu"))
    assert [process_pool.device_of(anyone, i).index for i in range(4)] == [0, 1, 2, 0]
    assert [process_pool.device_of(second, i).index for i in range(2)] == [1, 1]
    assert process_pool.device_of(cpu, 5) == cpu
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [process_pool.cores_each(n) for n in (1, 2, 5, 12, 40)] == [12, 6, 2, 1, 1]


# --- kill -9 of the whole -------------------------------------------------------------------


def test_nothing_is_lost_by_kill_9(few, tmp_path, monkeypatch):
    """Ten kills at random moments: the store ends as one that was never disturbed."""
    monkeypatch.setattr(computing, "SHARD", 3)
    fresh = features(few, cache=tmp_path / "alone")
    whole = 0.03 * int(fresh.blocks["fim"].present.sum())  # what Net("linger") takes at least
    randomness = random.Random(0)
    killed_ten_times(
        lambda: features(few, Net("linger"), cache=tmp_path / "killed"),
        lambda: randomness.uniform(0.02, 0.16) * whole,
    )
    assert_same_table(features(few, cache=tmp_path / "killed"), fresh)
    assert kept(tmp_path / "killed") == kept(tmp_path / "alone")


STUDY = """
name = "killed"
space = "act_bench"
model = { name = "mlp" }
data = { name = "digits", validation = 400 }
training = { threads = 1, device = "cpu" }
features = { precision = "float64" }
"""


def command(cache: Path, workers: int) -> subprocess.Popen[str]:
    (cache.parent / "study.toml").write_text(STUDY)
    return subprocess.Popen(
        [
            sys.executable,
            *f"-m bo_act.cli features study.toml --json -q --workers {workers}".split(),
        ],
        cwd=cache.parent,
        env=environment() | {"BO_ACT_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(cache: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in cache.glob("**/manifest.jsonl"))


def table_hash(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return json.loads(out)["hash"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_lost_by_kill_9_of_the_command(tmp_path, workers):
    """Ten kills of the real command and, in between, of its workers."""
    started = time.monotonic()
    undisturbed = table_hash(command(tmp_path / "alone", 1))
    whole = time.monotonic() - started
    cache = tmp_path / "killed"
    randomness = random.Random(workers)
    kills = worker_kills = 0
    while kills < 10:
        before = lines(cache)
        process = command(cache, workers)
        if kills % 2:  # every other one while it computes, the rest while it begins
            while lines(cache) == before and process.poll() is None:
                time.sleep(0.01)
            if workers > 1:
                crew = sorted(descendants(process.pid) - {process.pid})
                # Workers, or the server that they are forked from.
                crew = [p for p in crew if b"forkserver" in Path(f"/proc/{p}/cmdline").read_bytes()]
                os.kill(randomness.choice(crew), signal.SIGKILL)
                worker_kills += 1
        time.sleep(randomness.uniform(0, 0.1) * whole)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.wait()
        kills += 1
    done = lines(cache)
    assert table_hash(command(cache, workers)) == undisturbed
    assert 0 < done < lines(cache)  # there was something left to lose
    assert worker_kills == (5 if workers > 1 else 0)
    names = [
        {path.name: path.read_bytes() for path in c.glob("features/*/fim-*.parquet")}
        for c in (cache, tmp_path / "alone")
    ]
    assert names[0] == names[1]

"""How a study is doing, and the commands of workers."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial
from processes import environment
from rich.console import Console
from small_studies import SPACE, make

from bo_act import terminal
from bo_act.study.results.status import read_status
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import OWNER, Owner

FILE = """
name = "tiny"
space = "few.toml"
storage = "studies.log"
trials = 5
model = { name = "mlp", options = { widths = [16, 16] } }
data = { name = "digits", train = 256, validation = 200 }
training = { epochs = 3, batch_size = 64, threads = 1, device = "cpu" }
features = { fim = false }
confirm = { seeds = 0 }
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(SPACE)
    (tmp_path / "tiny.toml").write_text(FILE)


def test_the_status_names_who_is_at_work():
    spec = make(trials=3, confirm={"seeds": 0}, features={"fim": False})
    run_study(spec)
    study = load_study(spec)
    for pid in (Owner.me().pid, 2**22 + 1):
        owner = Owner.me().as_attribute() | {"pid": pid}
        running = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner})
        running.datetime_start = datetime.now() - timedelta(seconds=90)
        study._storage.create_new_trial(study._study_id, running)
    found = read_status(spec.model_copy(update={"trials": 9}))
    assert [(one.pid, one.alive) for one in found.workers] == [
        (Owner.me().pid, True),
        (2**22 + 1, False),
    ]
    assert found.workers[0].seconds == pytest.approx(90, abs=20)
    assert (found.trials.complete, found.trials.running, found.done) == (3, 2, False)
    page = io.StringIO()
    for width, heard in ((80, True), (120, False)):
        at_work = found if heard else replace(found, workers=found.workers[:1])
        Console(file=page, width=width).print(terminal.status_table(at_work))
        assert ("trial waits" in page.getvalue()) == ("heartbeat" in page.getvalue()) == heard
        assert max(map(len, page.getvalue().splitlines())) <= width
        page.truncate(page.seek(0))
    ends = [trial.datetime_complete for trial in study.trials[:3]]
    rate = 2 / (ends[-1] - ends[0]).total_seconds()
    assert found.per_hour == pytest.approx(3600 * rate)
    assert found.seconds_left == pytest.approx(6 / rate)


def test_a_worker_ends_with_the_study_and_confirms_nothing(bo_act):
    code, out, _ = bo_act("worker", "tiny.toml", "-q", "--json")
    assert (code, json.loads(out)) == (0, {"study": "tiny", "trials": 5})
    assert bo_act("worker", "tiny.toml", "-q", "--set", "confirm.seeds=2")[0] == 0
    assert not [name for name in load_study(make()).user_attrs if "confirmed" in name]
    code, out, _ = bo_act("status", "tiny.toml")
    assert code == 0
    assert "5 of 5" in out
    assert "No worker is running." in out
    assert bo_act("status", "tiny.toml", "--watch")[0] == 0  # done, so it ends
    code, out, _ = bo_act("status", "tiny.toml", "--json")
    assert json.loads(out)["trials"]["complete"] == 5


def test_a_study_that_nobody_has_begun(bo_act):
    code, _, err = bo_act("status", "tiny.toml")
    assert code == 2
    assert "`bo-act run` creates it" in err


def test_a_dashboard_that_is_not_installed(bo_act, monkeypatch):
    run_study(make(trials=1, confirm={"seeds": 0}, features={"fim": False}))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    code, _, err = bo_act("dashboard", "tiny.toml")
    assert code == 2
    assert "pip install 'bo-act[dashboard]'" in err


def test_the_dashboard_gets_the_studys_storage(bo_act, monkeypatch):
    dashboard = pytest.importorskip("optuna_dashboard")
    run_study(make(trials=1, confirm={"seeds": 0}, features={"fim": False}))
    served = []
    monkeypatch.setattr(
        dashboard, "run_server", lambda storage, host, port: served.append((storage, host, port))
    )
    code, out, _ = bo_act("dashboard", "tiny.toml", "--port", "8123")
    assert code == 0
    assert "http://127.0.0.1:8123/" in out
    (storage, *where) = served[0]
    assert where == ["127.0.0.1", 8123]
    assert storage.get_all_studies()[0].study_name == "tiny"
    assert "optuna_dashboard" in sys.modules


@pytest.mark.slow
def test_the_real_dashboard_shows_the_study_and_ends_with_ctrl_c(tmp_path):
    pytest.importorskip("optuna_dashboard")
    run_study(make(trials=2, confirm={"seeds": 0}, features={"fim": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A shell's background jobs, and all that they start, ignore Ctrl-C.
    heed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bo_act.cli import main; main()"
    )
    command = [sys.executable, "-c", heed, "dashboard", "tiny.toml", "--port", str(port)]
    server = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = server.stdout.readline()
        address = told.split()[0]
        assert address.startswith(f"http://127.0.0.1:{port}/dashboard/studies/"), told
        page = fetched(address, server)
        assert "<html" in page
        listed = json.loads(fetched(f"http://127.0.0.1:{port}/api/studies", server))
        (study,) = listed["study_summaries"]
        assert study["study_name"] == "tiny"
        assert address.endswith(f"/{study['study_id']}")
        taken = [*command[:-1], str(port)]
        second = subprocess.run(
            taken, env=environment(), capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert f"port {port} of 127.0.0.1 is not available" in second.stderr
    finally:
        server.send_signal(signal.SIGINT)
        _, told = server.communicate(timeout=30)
    assert server.returncode == 0, told
    assert "Traceback" not in told


def fetched(address: str, server: subprocess.Popen[str]) -> str:
    """Return a page, of a server that may take a moment to listen."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)

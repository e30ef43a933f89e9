"""Who is alive: by its number where that can be looked up, else by heartbeats."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from servers import PostgreSQL
from small_studies import SPACE, make
from sqlalchemy import text

from bo_act.dependencies.optuna_internals import backend_of
from bo_act.study.running.runner import run_study
from bo_act.study.storage import heartbeat
from bo_act.study.storage import owner as owners
from bo_act.study.storage.backends.heartbeats import beats_of
from bo_act.study.storage.heartbeat import Heartbeat, silences
from bo_act.study.storage.opening import load_study, open_storage
from bo_act.study.storage.owner import GRACE, OWNER, Owner
from bo_act.study.storage.study_view import StudyView

GRACES = 0.6  # seconds: a tenth of it from one heartbeat to the next


@pytest.fixture(scope="module")
def server():
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(params=["study.db", "study.log", "postgresql"])
def storage(request, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(SPACE)
    if request.param == "postgresql":
        return request.getfixturevalue("server").url
    return str(tmp_path / request.param)


@pytest.fixture
def study(storage, request) -> optuna.Study:
    name = request.node.name
    return optuna.create_study(study_name=name, storage=open_storage(storage))


def elsewhere(study: optuna.Study, *, grace: float | None = GRACES, **more: object) -> int:
    """Begin a trial as a process of another machine; return its id."""
    owner = {"host": "elsewhere", "pid": 1, "born": "1", "grace": grace, **more}
    template = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner})
    template.datetime_start = datetime.now()
    return study._storage.create_new_trial(study._study_id, template)


def numbers(study: optuna.Study, *ids: int) -> set[int]:
    return {trial.number for trial in study.trials if trial._trial_id in ids}


@contextmanager
def speaking(study: optuna.Study, trial_id: int):
    """Say that a trial's process is alive, as another process does."""
    over = threading.Event()

    def speak() -> None:
        while not over.wait(GRACES / 10):
            beats_of(study).beat(trial_id)

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def set_back(study: optuna.Study, trial_id: int, seconds: float) -> None:
    """Let a heartbeat be older than it is, as a clock that jumps does."""
    for path in Path().glob(f"*.beat-{trial_id}"):
        at = path.stat().st_mtime - seconds
        os.utime(path, (at, at))
        return
    with backend_of(study).engine.begin() as connection:
        past = f"heartbeat - interval '{seconds} seconds'"
        connection.execute(
            text(f"UPDATE trial_heartbeats SET heartbeat = {past} WHERE trial_id = {trial_id}")
        )


# --- who is known to be alive ---------------------------------------------------------------


def test_a_process_is_told_by_boot_and_name_space():
    me = Owner.me()
    assert me.is_here
    assert me.is_alive()
    assert not me.is_gone()
    assert Owner.read(me.as_attribute()) == me
    other = [
        me.as_attribute() | {"place": me.place.replace("pid:[", "pid:[1")},  # same host and boot
        me.as_attribute() | {"place": "0" + me.place[1:]},  # same host, another boot
        me.as_attribute() | {"place": owners._nowhere_else(1)},  # a system that does not tell
    ]
    for attribute in other:
        owner = Owner.read(attribute)
        assert owner != me
        assert (owner.is_here, owner.is_alive(), owner.is_gone()) == (False, False, False)
    # The name is for people: a machine may be given another one.
    renamed = Owner.read(me.as_attribute() | {"host": "renamed"})
    assert renamed.is_here
    assert renamed.is_alive()


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, "alive"),
        ({"pid": 2**22 + 1}, "gone"),
        ({"born": "1"}, "gone"),  # another process has its number now
        ({"born": ""}, None),  # a number alone is no proof
        ({"pid": 1, "born": "1"}, "gone"),
        ({"host": "elsewhere"}, None),
    ],
)
def test_owners_of_earlier_versions_go_by_the_host(changes, fate):
    me = Owner.me()
    owner = Owner.read({"host": me.host, "pid": me.pid, "born": me.born} | changes)
    assert (owner.place, owner.patience) == (None, None)
    assert (owner.is_alive(), owner.is_gone()) == (fate == "alive", fate == "gone")


def test_a_zombie_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    owner = Owner.read(
        Owner.me().as_attribute() | {"pid": process.pid, "born": owners._born(process.pid)}
    )
    deadline = time.monotonic() + 30
    while not owner.is_gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner.is_gone()
    process.wait()


def test_without_proc_numbers_prove_death_alone(monkeypatch):
    """As on macOS, which tells no process's birth."""
    monkeypatch.setattr(owners, "_place", lambda: "a boot")
    monkeypatch.setattr(owners, "_born", lambda _: "")
    me = Owner.me()
    assert me.is_here
    assert (me.is_alive(), me.is_gone()) == (False, False)
    assert Owner.read(me.as_attribute() | {"pid": 2**22 + 1}).is_gone()


def test_where_nothing_is_known_numbers_mean_nothing_to_others(monkeypatch):
    """As in a name space whose /proc is that of another: many a process is number 1 there."""

    def another(_: str) -> str:
        return "4711"

    monkeypatch.setattr(owners.os, "readlink", another)
    me = Owner.me()
    assert me.is_here
    assert me == Owner.me()
    child = os.fork()
    if child == 0:
        os._exit(Owner.me().place == me.place or me.is_here)
    assert os.waitpid(child, 0)[1] == 0


# --- silence --------------------------------------------------------------------------------


def test_who_is_silent_elsewhere_is_taken_for_dead(study):
    heard, silent, never = (elsewhere(study) for _ in range(3))
    mute = elsewhere(study, grace=None)  # of an earlier version, which says nothing
    beats_of(study).beat(silent)
    dead = numbers(study, silent, never)
    deadline = time.monotonic() + 30
    begun = time.monotonic()
    with speaking(study, heard):
        while (found := StudyView.of(study).abandoned) != dead and time.monotonic() < deadline:
            assert found < dead, found
            time.sleep(0.03)
        assert time.monotonic() - begun > GRACES / 2
        told = silences(study, study.trials)
        assert found == dead
    assert told[0].seconds < GRACES
    assert told[1].seconds > GRACES / 2
    assert told[1].is_too_long
    assert (told[2].seconds, told[2].is_too_long) == (None, True)
    assert (told[3].seconds, told[3].left) == (None, None)
    assert numbers(study, mute) == {3}


def test_a_loop_of_ones_own_is_heard_as_well(study):
    owner = Owner.read({"host": "e", "pid": 1, "born": "1", "grace": None, "place": "e"})
    assert owner.patience == GRACE
    trial = elsewhere(study, grace=None, place="elsewhere")
    beats_of(study).beat(trial)
    assert 0 < silences(study, study.trials)[0].left <= GRACE


def test_a_clock_that_jumps_kills_nobody(study):
    """All heartbeats look old at once; those who live speak again before they are judged."""
    trial = elsewhere(study)
    beats_of(study).beat(trial)
    ends = time.monotonic() + 4 * GRACES
    with speaking(study, trial):
        while time.monotonic() < ends:
            set_back(study, trial, 3600)
            assert StudyView.of(study).abandoned == set()
            time.sleep(0.01)


def test_a_clock_that_jumps_back_lets_nobody_live_for_ever(study):
    trial = elsewhere(study)
    beats_of(study).beat(trial)
    set_back(study, trial, -3600)
    deadline = time.monotonic() + 30
    while not (found := StudyView.of(study).abandoned) and time.monotonic() < deadline:
        time.sleep(0.03)
    assert found == {0}


def test_who_did_not_listen_judges_nobody(study, monkeypatch):
    """Everybody was stopped for a while, this process as well: there is time to speak first."""
    monkeypatch.setattr(heartbeat, "_STEADY", 0.0)
    trial = elsewhere(study)
    beats_of(study).beat(trial)
    assert StudyView.of(study).abandoned == set()
    time.sleep(2 * GRACES)
    assert StudyView.of(study).abandoned == set()
    beats_of(study).beat(trial)
    assert StudyView.of(study).abandoned == set()


def test_one_that_trains_listens_meanwhile(study, monkeypatch):
    monkeypatch.setattr(heartbeat, "_STEADY", 0.0)
    silent, mine = elsewhere(study, grace=1.5), elsewhere(study, grace=1.5)
    beats_of(study).beat(silent)
    deadline = time.monotonic() + 60
    with Heartbeat(study, mine, grace=1.5):
        while not (found := StudyView.of(study).abandoned) and time.monotonic() < deadline:
            time.sleep(0.8)  # a training, longer than what does not count as listening
    assert found == {0}


def test_the_trial_of_a_silent_worker_is_taken_over(storage, tmp_path):
    spec = make(name="inherited", storage=storage, confirm={"seeds": 0}, trials=3, grace=GRACES)
    run_study(spec)
    study = load_study(spec)
    silent = elsewhere(study)
    beats_of(study).beat(silent)
    result = run_study(spec.model_copy(update={"trials": 5}))
    assert (result.trials.complete, result.trials.running) == (5, 0)
    assert len(study.trials) == 5  # under its own number
    assert not list(tmp_path.glob("*.beat-*"))


# --- beside files ---------------------------------------------------------------------------


@pytest.fixture
def of_file(tmp_path, monkeypatch) -> optuna.Study:
    monkeypatch.chdir(tmp_path)
    return optuna.create_study(storage=open_storage("study.db"))


def test_a_heartbeat_ends_with_the_trial(of_file, tmp_path):
    trial = elsewhere(of_file)
    with Heartbeat(of_file, trial, grace=GRACES):
        (path,) = tmp_path.glob("study.db.beat-*")
        first = path.stat().st_mtime_ns
        time.sleep(GRACES / 2)
        assert path.stat().st_mtime_ns > first
        assert path.stat().st_size == 0
        path.unlink()  # somebody tidies up
        time.sleep(GRACES / 2)
        assert path.exists()
    time.sleep(GRACES / 2)
    assert not list(tmp_path.glob("study.db.beat-*"))


def test_many_trials_at_once_have_one_thread(of_file):
    before = threading.active_count()
    beating = [Heartbeat(of_file, elsewhere(of_file), grace=GRACES) for _ in range(20)]
    for one in beating:
        one.begin()
    assert threading.active_count() == before + 1
    for one in beating:
        one.end()
        one.end()  # nothing happens
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_a_forked_process_says_nothing_for_its_parent(of_file, tmp_path):
    with Heartbeat(of_file, elsewhere(of_file), grace=GRACES):
        (path,) = tmp_path.glob("study.db.beat-*")
        child = os.fork()
        if child == 0:
            try:  # nor is it stopped by a lock that the parent's thread had
                with Heartbeat(of_file, 99, grace=GRACES):
                    time.sleep(GRACES / 2)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert path.exists()


def test_who_may_only_read_can_tell(of_file, tmp_path):
    trial = elsewhere(of_file)
    beats_of(of_file).beat(trial)
    set_back(of_file, trial, 30)
    files = {path.name for path in tmp_path.iterdir()}
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert silences(of_file, of_file.trials)[0].seconds == pytest.approx(30, abs=5)
    finally:
        tmp_path.chmod(0o755)
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_heartbeat_that_cannot_be_written_is_told_once(of_file, tmp_path, caplog):
    trial = elsewhere(of_file)
    (tmp_path / f"study.db.beat-{trial}").symlink_to(tmp_path / "nowhere" / "x")
    with Heartbeat(of_file, trial, grace=GRACES):
        time.sleep(GRACES)
    assert caplog.text.count("heartbeat cannot be written") == 1


def test_a_full_disk_lets_nobody_look_dead(tmp_path):
    """A file's time takes no room, whether the trial began before the disk was full or after."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(volume)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode
    ):
        pytest.skip("needs root and a tmpfs")
    try:
        study = optuna.create_study(storage=open_storage(str(volume / "study.db")))
        trials = [elsewhere(study), elsewhere(study)]
        with Heartbeat(study, trials[0], grace=GRACES):
            with (volume / "full").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"0" * 4096):
                    pass
            with Heartbeat(study, trials[1], grace=GRACES):
                for trial in trials:
                    before = beats_of(study).read()[trial]
                    time.sleep(GRACES / 2)
                    assert beats_of(study).read()[trial][0] != before[0]
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)


@pytest.mark.parametrize("where", ["sqlite:///:memory:", None])
def test_memory_has_no_heartbeats(where):
    study = optuna.create_study(storage=where)
    assert beats_of(study) is None
    with Heartbeat(study, elsewhere(study)):
        told = silences(study, study.trials)[0]
        assert (told.seconds, told.left) == (None, None)


def test_optunas_own_storages_have_them(tmp_path, monkeypatch):
    """As in a loop of one's own, which opens its storage itself."""
    monkeypatch.chdir(tmp_path)
    backend = optuna.storages.journal.JournalFileBackend("own.log")
    for storage, name in [
        ("sqlite:///own.db", "own.db"),
        ("sqlite:///file:uri.db?uri=true", "uri.db"),
        (f"sqlite:///file://{tmp_path}/a%20b.db?uri=true", "a b.db"),
        (optuna.storages.JournalStorage(backend), "own.log"),
    ]:
        study = optuna.create_study(storage=storage)
        assert (tmp_path / name).is_file()
        beats_of(study).beat(7)
        assert (tmp_path / f"{name}.beat-7").exists()
        assert set(beats_of(study).read()) == {7}

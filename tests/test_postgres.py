"""Studies in a real PostgreSQL: many workers, a server that restarts, workers elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from servers import PostgreSQL
from sqlalchemy import text
from test_sampler import SMALL, objective
from test_study import SPACE, make

from bo_act import ActivationSampler
from bo_act.activations.space import Space
from bo_act.errors import StorageError
from bo_act.study import database
from bo_act.study.claims import OWNER, Owner
from bo_act.study.database import database_of
from bo_act.study.runner import run_study
from bo_act.study.storage import load_study, open_storage
from bo_act.study.trials import read_trials
from bo_act.study.turns import my_turn

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def server():
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(SPACE)
    monkeypatch.setattr(database, "_FIRST_PAUSE", 0.1)


def new_study(server: PostgreSQL, name: str, **options) -> optuna.Study:
    storage = open_storage(server.url)
    return optuna.create_study(study_name=name, storage=storage, direction="maximize", **options)


def work(url: str, trials: int) -> None:
    small = Space(SMALL)
    study = optuna.load_study(
        study_name="many", storage=open_storage(url), sampler=ActivationSampler(small)
    )
    study.optimize(objective(small), n_trials=trials)
    os._exit(0)  # the parent's test runner must not run on in here


def test_processes_take_different_functions_while_the_server_restarts(server):
    study = new_study(server, "many")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(server.url, 6)) for _ in range(3)]
    for worker in workers:
        worker.start()
    while len(study.trials) < 6:
        time.sleep(0.02)
    server.stop()
    time.sleep(0.3)
    server.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    done = study.get_trials(states=[TrialState.COMPLETE])
    # One trial may have been created twice, its first answer lost with the server.
    assert len(done) == 18
    assert max(Counter(trial.user_attrs["index"] for trial in done).values()) == 1


def test_a_study_goes_on_after_an_outage_with_nothing_lost(server, caplog):
    undisturbed = make(name="undisturbed", confirm={"seeds": 0})
    run_study(undisturbed)
    spec = make(name="restarts", storage=server.url, confirm={"seeds": 0})
    away = threading.Event()

    def restart() -> None:
        while not away.is_set() and len(new_or_none(spec)) < 4:
            time.sleep(0.02)
        server.stop()
        time.sleep(0.5)
        server.start()
        away.set()

    thread = threading.Thread(target=restart)
    thread.start()
    run_study(spec)
    thread.join()
    assert away.is_set()
    assert "is away" in caplog.text
    assert "the database is back" in caplog.text

    def told(spec):
        return [
            (t.user_attrs["activation"], t.value, t.intermediate_values)
            for t in load_study(spec).get_trials(states=[TrialState.COMPLETE])
        ]

    assert told(spec) == told(undisturbed)


def new_or_none(spec):
    try:
        return load_study(spec).trials
    except StorageError:
        return []


def test_a_server_that_stays_away_is_an_error(server, monkeypatch):
    study = new_study(server, "away")
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    server.stop()
    try:
        with pytest.raises(StorageError, match=r"has been away .* the same command goes on"):
            study.set_user_attr("told", 1)
    finally:
        server.start()
    study.set_user_attr("told", 2)
    assert study.user_attrs == {"told": 2}


def test_what_had_arrived_before_the_answer_was_lost_is_not_written_twice(server, monkeypatch):
    study = new_study(server, "answered")
    trial = study.ask()
    arrive = optuna.storages.RDBStorage.set_trial_state_values
    lost = []

    def loses_the_answer(self, *args, **options):
        done = arrive(self, *args, **options)
        if not lost:
            lost.append(1)
            raise database.OperationalError("tell", {}, Exception("server closed the connection"))
        return done

    inner = database_of(study)
    call = database._waited_for(loses_the_answer)
    monkeypatch.setattr(type(inner), "set_trial_state_values", call)
    study.tell(trial, 0.5)
    assert lost
    assert study.trials[0].value == 0.5


# --- heartbeats -----------------------------------------------------------------------------


def elsewhere(study: optuna.Study, *, grace: float | None) -> int:
    """Begin a trial as a process of another machine."""
    owner = {"host": "elsewhere", "pid": 1, "born": "1", "grace": grace}
    template = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner})
    template.datetime_start = datetime.now()
    return study._storage.create_new_trial(study._study_id, template)


def silence(study: optuna.Study, trial: int, seconds: float) -> None:
    inner = database_of(study)
    inner.beat(trial)
    with inner.engine.begin() as connection:
        past = f"heartbeat - interval '{seconds} seconds'"
        connection.execute(
            text(f"UPDATE trial_heartbeats SET heartbeat = {past} WHERE trial_id = {trial}")
        )


def test_a_worker_elsewhere_that_is_silent_is_taken_for_dead(server):
    study = new_study(server, "silent")
    heard, silent, never = (elsewhere(study, grace=30.0) for _ in range(3))
    old = elsewhere(study, grace=None)  # does not say that it is alive
    silence(study, heard, 20)
    silence(study, silent, 40)
    inner = database_of(study)
    inner.since = time.monotonic() - 15
    numbers = {one: i for i, one in enumerate((heard, silent, never, old))}
    assert read_trials(study)[1] == {numbers[silent]}
    # Right after an outage everybody has been silent: there is time to speak first.
    inner.since = time.monotonic() - 5
    assert read_trials(study)[1] == set()
    inner.since = time.monotonic() - 15
    with inner.engine.begin() as connection:
        begun = datetime.now() - timedelta(seconds=40)
        connection.execute(
            text("UPDATE trials SET datetime_start = :begun WHERE trial_id = :trial"),
            {"begun": begun, "trial": never},
        )
    assert read_trials(study)[1] == {numbers[silent], numbers[never]}


def test_the_trial_of_a_silent_worker_is_taken_over(server, monkeypatch):
    spec = make(name="inherited", storage=server.url, confirm={"seeds": 0}, trials=3)
    run_study(spec)
    study = load_study(spec)
    silent = elsewhere(study, grace=30.0)
    silence(study, silent, 40)
    monkeypatch.setattr("bo_act.study.heartbeat.BEATS", 1e9)  # known for long enough
    looks = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 5, "the trial of the silent worker is not taken over"
        time.sleep(0.1)

    monkeypatch.setattr("bo_act.study.work.time", SimpleNamespace(sleep=wait))
    result = run_study(spec.model_copy(update={"trials": 5}))
    assert (result.trials.complete, result.trials.running) == (5, 0)
    assert len(study.trials) == 5  # under its own number


def test_heartbeats_are_written_while_a_trial_runs(server, monkeypatch):
    spec = make(name="beats", storage=server.url, confirm={"seeds": 0}, trials=2, grace=0.3)
    run_study(spec)
    study = load_study(spec)
    with database_of(study).engine.connect() as connection:
        ids = connection.execute(text("SELECT trial_id FROM trial_heartbeats")).scalars().all()
    assert {trial._trial_id for trial in study.trials} <= set(ids)
    assert Owner.read(study.trials[0].system_attrs[OWNER]).grace == 0.3


def test_one_turn_at_a_time(server):
    new_study(server, "turns")
    inside, most = [], []

    def take() -> None:
        own = optuna.load_study(study_name="turns", storage=open_storage(server.url))
        for _ in range(5):
            with my_turn(own):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.005)
                inside.pop()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20

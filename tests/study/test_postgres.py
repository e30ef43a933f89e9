"""Studies in a real PostgreSQL: many workers, a server that restarts, workers elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState
from servers import PostgreSQL
from small_studies import SPACE, make
from sqlalchemy import text
from test_sampler import SMALL, objective

from bo_act import ActivationSampler
from bo_act.dependencies.optuna_internals import backend_of
from bo_act.errors import StorageError
from bo_act.spaces.space import Space
from bo_act.study.running.runner import run_study
from bo_act.study.storage.backends import database
from bo_act.study.storage.backends.locks import study_lock
from bo_act.study.storage.opening import load_study, open_storage
from bo_act.study.storage.owner import OWNER, Owner

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
    restarts = []

    def restart(_, trial) -> None:
        if trial.number == 3:
            server.stop()
            restarts.append(threading.Timer(0.5, server.start))
            restarts[0].start()

    run_study(spec, callbacks=[restart])
    restarts[0].join()
    assert "is unreachable" in caplog.text
    assert "the database is back" in caplog.text

    def told(spec):
        return [
            (t.user_attrs["activation"], t.value, t.intermediate_values)
            for t in load_study(spec).get_trials(states=[TrialState.COMPLETE])
        ]

    assert told(spec) == told(undisturbed)


def test_a_server_that_stays_away_is_an_error(server, monkeypatch):
    study = new_study(server, "away")
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    server.stop()
    try:
        with pytest.raises(StorageError, match=r"has been unreachable .* the same command resumes"):
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

    inner = backend_of(study)
    call = database._waited_for(loses_the_answer)
    monkeypatch.setattr(type(inner), "set_trial_state_values", call)
    study.tell(trial, 0.5)
    assert lost
    assert study.trials[0].value == 0.5


# --- heartbeats -----------------------------------------------------------------------------


def test_heartbeats_are_written_while_a_trial_runs(server):
    spec = make(name="beats", storage=server.url, confirm={"seeds": 0}, trials=2, grace=0.3)
    run_study(spec)
    study = load_study(spec)
    with backend_of(study).engine.connect() as connection:
        ids = connection.execute(text("SELECT trial_id FROM trial_heartbeats")).scalars().all()
    assert {trial._trial_id for trial in study.trials} <= set(ids)
    assert Owner.read(study.trials[0].system_attrs[OWNER]).grace == 0.3


def test_one_turn_at_a_time(server):
    new_study(server, "turns")
    inside, most = [], []

    def take() -> None:
        own = optuna.load_study(study_name="turns", storage=open_storage(server.url))
        for _ in range(5):
            with study_lock(own):
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

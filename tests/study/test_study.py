"""Whole studies: from a study file to results, resumed, killed, gone wrong."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from kills import killed_ten_times
from optuna.trial import TrialState, create_trial
from small_studies import SPACE, history, make

from bo_act import content
from bo_act.errors import NetworkError, SearchError, StorageError
from bo_act.specs import StudySpec
from bo_act.statistics import holm
from bo_act.study.results.confirmed import interval, paired
from bo_act.study.results.summary import read_result
from bo_act.study.results.verdict import caveats
from bo_act.study.running.runner import Events, run_study
from bo_act.study.running.worker import _next_trial, _No, compute_candidate_features, make_sampler
from bo_act.study.storage.opening import load_study, open_storage
from bo_act.study.storage.owner import CLAIM, DEATHS, OWNER, Owner, _born
from bo_act.tasks.task import Task
from bo_act.training.optimization import learning_rate
from bo_act.training.outcomes import TrainingStopped

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


class Recorder(Events):
    def __init__(self) -> None:
        self.trained: list[int] = []
        self.confirmed: list[str] = []

    def search(self, done, total, trial, best):
        if trial is not None:
            self.trained.append(trial.number)

    def confirmation(self, done, total, text):
        self.confirmed.append(text)


# --- a study --------------------------------------------------------------------------------


def test_a_study_runs_to_its_end_and_a_second_call_does_nothing():
    spec = make()
    result = run_study(spec)
    assert result.trials.complete == 8
    assert result.trials.failed == result.trials.running == 0
    assert result.best is not None
    assert result.best.value == max(found.value for found in result.top)
    assert result.baseline.activation == "relu(x)"
    assert result.baseline.value == load_study(spec).trials[0].value
    rows = {row.activation: row for row in result.confirmed}
    assert [row.role for row in result.confirmed] == ["found"] * 2 + ["baseline"] * (len(rows) - 2)
    assert {"relu(x)", "gelu(x)"} <= set(rows)
    assert all(row.seeds == 2 for row in result.confirmed)
    assert rows["relu(x)"].minus_relu is None

    again = Recorder()
    assert run_study(spec, events=again) == result == read_result(spec)
    assert again.trained == []
    json.dumps(result.as_json(), allow_nan=False)
    assert json.loads(Path("runs/tiny/study.json").read_text())["trials"] == 8


def test_more_trials_go_on_from_where_it_stopped():
    longer = make(name="longer", trials=10, confirm={"seeds": 0})
    run_study(longer)
    stepwise = make(name="stepwise", trials=4, confirm={"seeds": 0})
    run_study(stepwise)
    run_study(stepwise.model_copy(update={"trials": 10}))
    assert history(stepwise) == history(longer)


def test_an_interrupted_confirmation_goes_on():
    class Stop(Events):
        def confirmation(self, done, total, text):
            if done == 3:
                raise KeyboardInterrupt

    spec = make()
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, events=Stop())
    kept = [name for name in load_study(spec).user_attrs if "confirmed" in name]
    assert len(kept) == 3
    assert read_result(spec).confirmed == ()
    result = run_study(spec)
    assert all(row.seeds == 2 for row in result.confirmed)
    fresh = run_study(make(name="fresh"))
    assert fresh.confirmed == result.confirmed


def test_other_settings_under_the_same_name_are_refused():
    run_study(make(trials=2, confirm={"seeds": 0}))
    with pytest.raises(StorageError, match=r"training\.epochs was 3, is 5"):
        run_study(make(training={"epochs": 5}))
    run_study(make(trials=2, confirm={"seeds": 0}, training={"threads": None}))


def test_a_network_that_changed_under_the_study_is_refused():
    net = Path(content.find("models", "mlp")).read_text()
    Path("net.py").write_text(net)
    spec = make(trials=2, confirm={"seeds": 0}, model={"name": "net.py"})
    run_study(spec)
    Path("net.py").write_text(net + "\n# a change\n")
    with pytest.raises(StorageError, match="the network's file changed since"):
        run_study(spec.model_copy(update={"trials": 3}))
    Path("net.py").write_text(net)
    assert run_study(spec.model_copy(update={"trials": 3})).trials.complete == 3


def test_an_interrupted_trial_is_taken_over_in_the_same_process(monkeypatch):
    undisturbed = make(name="undisturbed", confirm={"seeds": 0})
    run_study(undisturbed)
    train = Task.train
    calls = []

    def interrupted(self, expression, *, report, **options):
        def stop(epoch, accuracy):
            report(epoch, accuracy)
            if len(calls) == 3 and epoch == 1:
                raise KeyboardInterrupt

        calls.append(str(expression))
        return train(self, expression, report=stop, **options)

    monkeypatch.setattr(Task, "train", interrupted)
    spec = make(confirm={"seeds": 0})
    with pytest.raises(KeyboardInterrupt):
        run_study(spec)
    run_study(spec)
    assert history(spec) == history(undisturbed)


def test_the_confirmation_uses_seeds_that_the_search_did_not(monkeypatch):
    train = Task.train
    seeds = []

    def noted(self, expression, *, seed, report=None, **options):
        seeds.append((report is not None, seed))
        return train(self, expression, seed=seed, report=report, **options)

    monkeypatch.setattr(Task, "train", noted)
    run_study(make(trials=3, seed=4))
    searched = {seed for searching, seed in seeds if searching}
    confirmed = [seed for searching, seed in seeds if not searching]
    assert searched == {4}
    assert len(set(confirmed)) == 2
    assert not searched & set(confirmed)


def test_test_images_are_not_read_before_the_confirmation(monkeypatch):
    from bo_act.data.loading import Data

    reads = []
    load = Data.load_test
    monkeypatch.setattr(Data, "load_test", lambda self: reads.append(1) or load(self))
    run_study(make(trials=4, confirm={"seeds": 0}))
    assert reads == []
    run_study(make(trials=4))
    assert reads == [1]


# --- results that are not values ------------------------------------------------------------


def test_a_diverged_function_is_a_result(tmp_path):
    spec = make(trials=3, confirm={"seeds": 1, "top": 1})
    Path("few.toml").write_text(SPACE.replace('"relu(x)", "tanh(x)"', '"exp(x)", "relu(x)"'))
    spec = make(trials=3, confirm={"seeds": 1, "top": 1}, training={"learning_rate": 1e6})
    result = run_study(spec)
    assert result.trials.diverged >= 1
    assert result.trials.complete == 3
    for trial in load_study(spec).trials:
        diverged = trial.user_attrs["status"] == "diverged"
        assert trial.constraints == {"diverged": float(diverged)}
        assert not diverged or trial.value == pytest.approx(0.1)


def test_a_pruned_function_is_not_proposed_again():
    spec = make(
        trials=14,
        confirm={"seeds": 0},
        pruner={"name": "percentile", "percentile": 20.0, "startup_trials": 3, "warmup_epochs": 0},
    )
    result = run_study(spec)
    assert result.trials.pruned > 0
    assert result.trials.finished == 14
    functions = [row[1] for row in history(spec)]
    assert len(set(functions)) == 14


def test_an_infrastructure_failure_is_retried(monkeypatch):
    undisturbed = make(name="undisturbed", confirm={"seeds": 0})
    run_study(undisturbed)
    train = Task.train
    calls = Counter()

    def flaky(self, expression, **options):
        calls[str(expression)] += 1
        if str(expression) == "tanh(x)" and calls["tanh(x)"] == 1:
            raise RuntimeError("CUDA error: the device\nis gone")
        return train(self, expression, **options)

    monkeypatch.setattr(Task, "train", flaky)
    spec = make(confirm={"seeds": 0})
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (8, 1)
    failed = load_study(spec).get_trials(states=[TrialState.FAIL])
    assert failed[0].user_attrs["failure"]["message"] == "CUDA error: the device is gone"
    assert failed[0].user_attrs["failure"]["blame"] == "machine"
    assert calls["tanh(x)"] == 2
    done = [row[1:3] for row in history(spec) if row[3] == "COMPLETE"]
    assert done == [row[1:3] for row in history(undisturbed)]


def test_a_study_in_which_everything_fails_ends(monkeypatch):
    def broken(self, expression, **options):
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(Task, "train", broken)
    with pytest.raises(SearchError, match="no space left on device"):
        run_study(make())


def test_a_whole_space_can_be_evaluated():
    Path("few.toml").write_text(
        'name = "few"\nexpressions = ["relu(x)", "tanh(x)", "erf(x)"]\nbaselines = ["relu(x)"]\n'
    )
    result = run_study(make(trials=50, confirm={"seeds": 0}))
    assert result.trials.complete == 3


def test_a_network_that_does_not_fit_is_an_error_and_not_a_result():
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(activation, *, in_channels, image_size, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes), activation())\n"
    )
    spec = make(trials=2, model={"name": "net.py", "options": {}}, features={"fim": False})
    with pytest.raises(NetworkError):
        run_study(spec)
    fixed = Path("net.py").read_text().replace("Linear(7", "Linear(64")
    Path("net.py").write_text(fixed)
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (2, 0)


# --- kill -9 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "storage",
    ["runs/killed/study.db", pytest.param("runs/killed/study.log", marks=pytest.mark.slow)],
)
def test_nothing_is_lost_by_kill_9(storage, monkeypatch):
    """Ten kills at random moments: the study ends as one that was never disturbed."""
    monkeypatch.setattr(
        "bo_act.study.storage.opening._STALE_LOCK", 3
    )  # some kills hit a lock's holder
    settings = {"trials": 14, "confirm": {"seeds": 0}, "training": {"epochs": 12}}
    undisturbed = make(name="undisturbed", **settings)
    started = time.monotonic()
    run_study(undisturbed)
    whole = time.monotonic() - started
    spec = make(name="killed", storage=storage, **settings)
    randomness = random.Random(storage)
    killed_ten_times(lambda: run_study(spec), lambda: randomness.uniform(0.01, 0.07) * whole)
    assert history(spec) == history(undisturbed)
    assert all(row[3] == "COMPLETE" for row in history(spec))
    assert max(Counter(row[1] for row in history(spec)).values()) == 1


def test_a_torn_last_line_of_a_journal_is_mended():
    spec = make(trials=3, storage="journal.log", confirm={"seeds": 0})
    run_study(spec)
    whole = Path("journal.log").read_bytes()
    Path("journal.log").write_bytes(whole + b'{"op_code": 5, "wor')
    run_study(spec.model_copy(update={"trials": 5}))
    assert len(history(spec)) == 5
    assert Path("journal.log").read_bytes().startswith(whole)


def test_the_lock_of_a_killed_writer_is_taken_over(monkeypatch):
    monkeypatch.setattr("bo_act.study.storage.opening._STALE_LOCK", 3)
    spec = make(trials=3, storage="journals/one.log", confirm={"seeds": 0})
    run_study(spec)
    open_storage("journals/one.log")._backend._lock.acquire()  # and never released
    run_study(spec.model_copy(update={"trials": 4}))
    assert len(history(spec)) == 4


# --- SIGTERM and Ctrl-C -----------------------------------------------------------------------


def _command(spec: StudySpec) -> None:
    """Run ``bo-act run`` on a study, in a process whose stderr is a file."""
    from bo_act.cli import main, studies

    with Path("told").open("w") as told:
        os.dup2(told.fileno(), 2)
        sys.stderr = told
        studies.read = lambda *_: spec
        sys.argv = ["bo-act", "run", "asked", "--quiet"]
        main()


@pytest.mark.parametrize(
    ("asked", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_signal_finishes_the_step_and_gives_the_trial_back(asked, code):
    """In a process of its own, in the middle of a training."""
    settings = {"trials": 2, "confirm": {"seeds": 0}, "training": {"epochs": 100}}
    undisturbed = make(name="undisturbed", **settings)
    run_study(undisturbed)
    spec = make(name="asked", **settings)
    process = multiprocessing.get_context("fork").Process(target=_command, args=(spec,))
    process.start()
    opened = None
    while process.is_alive():
        time.sleep(0.1)
        try:
            opened = opened or load_study(spec)
            trials = opened.get_trials(deepcopy=False)
        except (StorageError, optuna.exceptions.StorageInternalError):
            continue
        if trials and trials[-1].number == 1 and len(trials[-1].intermediate_values) > 3:
            break
    os.kill(process.pid, asked)
    process.join(60)
    told = Path("told").read_text()
    assert process.exitcode == code, told
    assert "the same command resumes here" in told
    given_back = load_study(spec).trials[-1]
    assert given_back.state == TrialState.RUNNING
    assert given_back.system_attrs[OWNER] is None
    (kept,) = Path("runs/asked/checkpoints").iterdir()

    run_study(spec)
    assert history(spec) == history(undisturbed)
    assert not kept.exists()


def test_a_signal_in_the_last_step_keeps_the_result_and_stops():
    spec = make(trials=3, confirm={"seeds": 0})
    train = Task.train

    def asked(self, expression, *, report, **options):
        def told(epoch, accuracy):
            report(epoch, accuracy)
            if epoch == spec.training.epochs - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return train(self, expression, report=told, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "train", asked)
        with pytest.raises(TrainingStopped):
            run_study(spec)
    assert [trial.state for trial in load_study(spec).trials] == [TrialState.COMPLETE]


def test_a_trial_that_is_taken_over_goes_on_from_its_checkpoint(monkeypatch):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 0.0)
    monkeypatch.setattr("bo_act.training.checkpoint.SAVING_SHARE", float("inf"))
    settings = {"trials": 2, "confirm": {"seeds": 0}, "training": {"epochs": 5}}
    undisturbed = make(name="undisturbed", **settings)
    run_study(undisturbed)
    spec = make(name="given", **settings)
    report, told = optuna.Trial.report, []

    def interrupted(self, value, step):
        told.append(step)
        report(self, value, step)
        if len(told) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Trial, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(spec)
    steps: list[int] = []
    monkeypatch.setattr(
        "bo_act.training.trainer.learning_rate",
        lambda spec, *, step, steps: steps_of(step, learning_rate(spec, step=step, steps=steps)),
    )

    def steps_of(step, rate):
        steps.append(step)
        return rate

    run_study(spec)
    assert history(spec) == history(undisturbed)
    assert told == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]  # no epoch twice
    assert steps[0] == 3 * 4  # four steps an epoch
    assert list(Path("runs/given/checkpoints").iterdir()) == []


def test_a_collapsed_function_is_a_result_that_says_so():
    Path("few.toml").write_text(
        'name = "few"\nexpressions = ["zero(x)", "relu(x)"]\nbaselines = ["zero(x)"]\n'
    )
    spec = make(
        trials=2,
        confirm={"seeds": 0},
        training={"epochs": 8, "collapse_epochs": 3, "schedule": "constant"},
        features={"fim": False},
    )
    run_study(spec)
    flat, relu = sorted(
        load_study(spec).trials, key=lambda t: t.user_attrs["activation"] != "zero(x)"
    )
    assert (flat.user_attrs["status"], flat.value) == ("diverged", 0.1)
    assert flat.user_attrs["collapsed"] is True
    assert len(flat.intermediate_values) < 8
    assert "collapsed" not in relu.user_attrs


# --- storages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db", "me@127.0.0.1:1/db cannot be reached"),
        ("nonsense://somewhere", "cannot be reached"),
        ("sqlite:////no/such/folder/study.db", "cannot be reached"),
        ("/proc/no/study.db", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_reached(where, says):
    with pytest.raises(StorageError, match=says) as caught:
        open_storage(where)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_study_that_was_never_run():
    with pytest.raises(StorageError, match="bo-act run"):
        read_result(make(name="never"))


# --- several workers ------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_of_their_own_processes_share_a_study():
    seen = Recorder()
    spec = make(trials=8, confirm={"seeds": 0}, features={"fim": False})
    result = run_study(spec, workers=2, events=seen)
    assert (result.trials.complete, result.trials.running) == (8, 0)
    study = load_study(spec)
    functions = [trial.user_attrs["activation"] for trial in study.trials]
    assert len(set(functions)) == len(functions) == 8  # none too many, none twice
    assert sorted(seen.trained) == list(range(8))
    assert os.getpid() not in {trial.system_attrs[OWNER]["pid"] for trial in study.trials}


@pytest.mark.slow
def test_a_confirmation_by_several_workers_is_that_of_one():
    alone = run_study(make(name="alone", trials=3))
    assert run_study(make(trials=3), workers=2).confirmed == alone.confirmed


@pytest.mark.slow
def test_what_a_worker_raises_ends_the_study():
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(activation, *, in_channels, image_size, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes), activation())\n"
    )
    spec = make(model={"name": "net.py", "options": {}}, features={"fim": False})
    with pytest.raises(NetworkError, match="the network fails on images"):
        run_study(spec, workers=2)


def test_a_trial_that_many_processes_died_over_fails(monkeypatch):
    spec = make(trials=2, confirm={"seeds": 0})
    run_study(spec)
    study = load_study(spec)
    gone = {"host": Owner.me().host, "pid": 2**22 + 1, "born": "0"}
    attributes = {OWNER: gone, DEATHS: 10, CLAIM: study.trials[0].params}
    study._storage.create_new_trial(
        study._study_id, create_trial(state=TrialState.RUNNING, system_attrs=attributes)
    )
    result = run_study(spec.model_copy(update={"trials": 4}))
    assert (result.trials.complete, result.trials.failed) == (4, 1)
    assert load_study(spec).trials[2].user_attrs["failure"] == "11 processes died over it"


def test_no_more_trials_are_begun_than_are_asked_for():
    spec = make(trials=3, confirm={"seeds": 0})
    run_study(spec)
    study = load_study(spec)
    # Another worker of this machine, the parent process, runs the last one.
    other = Owner(Owner.me().host, os.getppid(), _born(os.getppid())).as_attribute()
    study._storage.create_new_trial(
        study._study_id, create_trial(state=TrialState.RUNNING, system_attrs={OWNER: other})
    )
    more = spec.model_copy(update={"trials": 4})
    sampler = make_sampler(
        Task.load(more), compute_candidate_features(Task.load(more), Events()), study
    )
    assert _next_trial(more, study, sampler) is _No.YET
    study.tell(3, 0.5)
    assert _next_trial(more, study, sampler) is _No.MORE


# --- intervals ------------------------------------------------------------------------------


def test_interval_is_students():
    # Five values with mean 3 and standard error sqrt(0.5); t(0.975, 4) = 2.7764.
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.high - found.mean == pytest.approx(2.7764 * 0.5**0.5, rel=1e-4)
    assert interval([0.5]).low is None


def test_paired_differences():
    a, b = [0.5, 0.6, 0.8], [0.4, 0.55, 0.6]
    found = paired(a, b)
    # Differences 0.1, 0.05, 0.2: mean 0.35 / 3, t = mean / (s / sqrt(3)), two degrees of freedom.
    s = math.sqrt(((0.1 - 0.35 / 3) ** 2 + (0.05 - 0.35 / 3) ** 2 + (0.2 - 0.35 / 3) ** 2) / 2)
    t = 0.35 / 3 / (s / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # of Student's t with 2 degrees
    assert found.mean == pytest.approx(0.35 / 3)
    assert paired([0.5, 0.5], [0.5, 0.5]).p is None


def test_the_winner_is_compared_with_every_baseline_and_its_luck_is_said():
    result = run_study(make())
    for row in result.confirmed:
        assert set(row.minus) == {"relu(x)", "gelu(x)"} - {row.activation}
        if row.minus_relu is not None:
            assert row.minus["relu(x)"].mean == row.minus_relu.mean
    found = result.confirmed[0]
    assert found.searched == result.best.value
    assert result.as_json()["confirmed"][0]["shrinkage"] == pytest.approx(
        found.searched - found.validation.mean
    )
    said = " ".join(caveats(result.confirmed))
    assert "Shrinkage" in said
    assert "gelu(x) " in said
    assert "Of the table's 4 comparisons" in said


def test_holms_adjustment():
    # Holm 1979: sorted p times what is left, never decreasing, at most 1.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]

"""A study's trials are of one setting: who opens it with another one is refused."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import SPACE, STORAGE, history, make

from bo_act import content
from bo_act.errors import BoActError, NetworkError, SearchError, StorageError
from bo_act.events import Events
from bo_act.specs import StudySpec
from bo_act.study.running.runner import run_study
from bo_act.study.running.worker import work
from bo_act.study.storage.opening import load_study, open_storage, open_study
from bo_act.study.storage.owner import OWNER
from bo_act.study.storage.recorded_settings import CONTENT, SPEC, _changed_settings
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

RANDOM = optuna.samplers.RandomSampler()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    Path("net.py").write_text(Path(content.find("models", "mlp")).read_text())


def small(**changes) -> StudySpec:
    return make(
        **{"trials": 2, "confirm": {"seeds": 0}, "features": {"fim": False}, **changes},
        model={"name": "net.py"},
    )


def died(spec: StudySpec, *, epoch: int | None) -> None:
    """Run a study in a process that dies in trial 0: after an epoch, or before the first."""
    train = Task.train

    def dies(self, expression, *, report, **options):
        def told(number, accuracy):
            report(number, accuracy)
            if number == epoch:
                os._exit(9)

        if epoch is None:
            os._exit(9)
        return train(self, expression, report=told, **options)

    child = os.fork()
    if not child:
        try:
            Task.train = dies
            run_study(spec)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def refused(spec: StudySpec, says: str) -> None:
    """By each door into a study."""
    for enter in (run_study, work):
        with pytest.raises(StorageError, match=says) as caught:
            enter(spec)
        assert "\n" not in str(caught.value)


# --- while trial 0 runs, and after it was killed ----------------------------------------------


def test_who_joins_in_trial_0_with_other_settings_is_refused(monkeypatch):
    spec = small()
    train, tried = Task.train, []

    def joined(self, expression, *, report, **options):
        if not tried:
            tried.append(1)
            refused(
                small(training={"learning_rate": 0.7}), "training.learning_rate was 0.05, is 0.7"
            )
            refused(small(training={"epochs": 9}), "training.epochs was 3, is 9")
            Path("net.py").write_text(Path("net.py").read_text() + "\n# a change\n")
            refused(spec, "the network's file changed since")
            free = small(trials=9, confirm={"seeds": 4}, max_retries=7)
            open_study(free, RANDOM)
        return train(self, expression, report=report, **options)

    monkeypatch.setattr(Task, "train", joined)
    assert run_study(spec).trials.complete == 2
    assert load_study(spec).user_attrs[SPEC]["training"]["epochs"] == 3


@pytest.mark.parametrize("epoch", [None, 0])
@pytest.mark.parametrize("storage", ["study.db", "study.log"])
def test_after_a_kill_in_trial_0_other_settings_are_refused(storage, epoch):
    undisturbed = small(name="undisturbed")
    run_study(undisturbed)
    spec = small(storage=storage)
    died(spec, epoch=epoch)
    refused(small(storage=storage, training={"epochs": 5}), "training.epochs was 3, is 5")
    refused(small(storage=storage, seed=1), "seed was 0, is 1")
    if epoch is not None:
        source = Path("net.py").read_text()
        Path("net.py").write_text(source + "\n# a change\n")
        refused(spec, "the network's file changed since")
        Path("net.py").write_text(source)
    run_study(spec)
    assert history(spec) == history(undisturbed)


def test_two_that_begin_at_the_same_moment():
    """Each has opened the study before the other one begins a trial: one of them ends."""
    context = multiprocessing.get_context("fork")
    together, ends = context.Barrier(2), context.Queue()

    class Waits(Events):
        def opened(self, study):
            together.wait()

    def worker(epochs: int) -> None:
        try:
            run_study(small(training={"epochs": epochs}), events=Waits())
            ends.put((epochs, ""))
        except StorageError as error:
            ends.put((epochs, str(error)))
        finally:
            ends.close()
            ends.join_thread()
            os._exit(0)

    workers = [context.Process(target=worker, args=(epochs,)) for epochs in (2, 4)]
    for one in workers:
        one.start()
    ended = dict(ends.get() for _ in workers)
    for one in workers:
        one.join()
    (lost,) = [epochs for epochs, said in ended.items() if said]
    won = 6 - lost
    assert f"training.epochs was {won}, is {lost}" in ended[lost]
    trials = load_study(small()).trials
    assert [len(trial.intermediate_values) for trial in trials] == [won, won]
    assert load_study(small()).user_attrs[SPEC]["training"]["epochs"] == won


# --- before anything was measured -------------------------------------------------------------


def test_before_the_first_trial_anything_may_change():
    open_study(small(training={"epochs": 9}), RANDOM, content={"the data": "other"})
    spec = small()
    assert run_study(spec).trials.complete == 2
    assert load_study(spec).user_attrs[SPEC]["training"]["epochs"] == 3
    assert load_study(spec).user_attrs[CONTENT]["the data"] != "other"


def test_failed_trials_bind_nothing_but_what_there_is_to_choose_from(monkeypatch):
    def broken(self, expression, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    spec = small()
    with monkeypatch.context() as patch:
        patch.setattr(Task, "train", broken)
        with pytest.raises((SearchError, BoActError)):
            run_study(spec)
    failed = len(load_study(spec).trials)
    Path("few.toml").write_text(SPACE.replace('"tanh", ', ""))
    refused(spec, "the space's functions changed since")
    Path("few.toml").write_text(SPACE)
    Path("net.py").write_text(Path("net.py").read_text() + "\n# mended\n")
    mended = small(training={"batch_size": 32})
    assert run_study(mended).trials.complete == 2
    states = [trial.state for trial in load_study(spec).trials]
    assert states.count(TrialState.COMPLETE) == 2
    assert len(states) == failed + 2
    refused(spec, "training.batch_size was 32, is 64")


def test_a_trial_that_an_error_gave_back_is_begun_anew_with_other_settings(monkeypatch):
    train = Task.train

    def fails(self, expression, *, report, **options):
        if self.spec.training.epochs == 3:
            raise NetworkError("the network fails")
        return train(self, expression, report=report, **options)

    monkeypatch.setattr(Task, "train", fails)
    with pytest.raises(NetworkError):
        run_study(small())
    mended = small(training={"epochs": 2})
    assert run_study(mended).trials.complete == 2
    first, *others = load_study(mended).trials
    assert first.state == TrialState.FAIL
    assert first.user_attrs["failure"] == "what it started with has changed"
    assert [len(trial.intermediate_values) for trial in others] == [2, 2]


def test_a_curve_does_not_go_on_with_another_network(monkeypatch):
    train = Task.train

    def stops(self, expression, *, report, **options):
        def told(epoch, accuracy):
            report(epoch, accuracy)
            raise NetworkError("the network fails in its second epoch")

        return train(self, expression, report=told, **options)

    spec = small()
    with monkeypatch.context() as patch:
        patch.setattr(Task, "train", stops)
        with pytest.raises(NetworkError):
            run_study(spec)
    Path("net.py").write_text(Path("net.py").read_text() + "\n# mended\n")
    run_study(spec)
    first, *others = load_study(spec).trials
    assert first.state == TrialState.FAIL
    assert len(first.intermediate_values) == 1
    assert [len(trial.intermediate_values) for trial in others] == [3, 3]


def test_a_state_that_is_kept_on_disk_binds_to_the_settings():
    spec = small()
    study = open_study(spec, RANDOM)
    trial = study.ask()
    study._storage.set_trial_system_attr(trial._trial_id, OWNER, None)  # given back
    kept = Path("runs/tiny/checkpoints/a.pt")
    kept.parent.mkdir(parents=True)
    kept.touch()
    refused(small(training={"epochs": 5}), "training.epochs was 3, is 5")
    kept.unlink()
    open_study(small(training={"epochs": 5}), RANDOM)
    assert study.trials[0].state == TrialState.FAIL


# --- studies of other programs ----------------------------------------------------------------


def of_a_program(**options) -> optuna.Study:
    return optuna.create_study(study_name="tiny", storage=open_storage(STORAGE), **options)


def test_trials_of_a_program_are_not_mixed_with_those_of_a_study_file():
    study = of_a_program(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), n_trials=1)
    refused(small(), r"was made by a program, not by a study file; .*--set name=")
    assert SPEC not in study.user_attrs


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_a_study_with_other_directions_is_another_one(directions):
    of_a_program(directions=directions)
    refused(small(), "was made by a program, not by a study file")


def test_trials_that_were_enqueued_before_are_run():
    study = of_a_program(direction="maximize")
    study.enqueue_trial({"binary": "max", "left": "relu", "right": "tanh"})
    spec = small()
    assert run_study(spec).trials.complete == 2
    assert study.trials[0].user_attrs["activation"] == "max(relu(x),tanh(x))"
    assert study.user_attrs[SPEC]["name"] == "tiny"


# --- what is compared -------------------------------------------------------------------------


def changed(spec: StudySpec, before: dict) -> list[str]:
    return sorted(_changed_settings(spec, before))


def test_keys_of_the_user_are_compared_whether_they_were_there_or_not():
    before = make().model_dump(mode="json")
    options = make(model={"options": {"widths": [16, 16], "extra": 1}})
    without = make(model={"options": {}})
    assert changed(make(), before) == []
    assert changed(options, before) == ["model.options", "model.options.extra"]
    assert changed(without, before) == ["model.options"]
    searched = make(parameters={"training.learning_rate": {"low": 0.01, "high": 0.1}})
    assert "parameters" in changed(searched, before)
    assert "parameters" in changed(make(), searched.model_dump(mode="json"))


def test_keys_of_later_versions_are_compared_with_their_defaults():
    before = make().model_dump(mode="json")
    del before["training"]["label_smoothing"], before["surrogate"], before["storage"]
    assert changed(make(), before) == []
    assert changed(make(training={"label_smoothing": 0.1}), before) == ["training.label_smoothing"]
    before["training"]["of an earlier version"] = 3
    assert changed(make(), before) == []


def test_the_loss_of_classes_is_the_default():
    before = make().model_dump(mode="json")
    named = {name: make(features={"loss": name}) for name in ("cross_entropy", "mse")}
    assert changed(named["cross_entropy"], before) == []
    assert changed(make(), named["cross_entropy"].model_dump(mode="json")) == []
    assert changed(named["mse"], before) == ["features.loss"]


@pytest.mark.parametrize("value", [0, 8])
def test_a_study_whose_settings_have_a_key_that_is_no_more_goes_on(value):
    spec = small()
    run_study(spec)
    study = load_study(spec)
    known = study.user_attrs[SPEC]
    study.set_user_attr(SPEC, known | {"features": known["features"] | {"on_demand": value}})
    assert run_study(small(trials=3)).trials.complete == 3
    refused(small(training={"epochs": 5}), "training.epochs was 3, is 5")


def test_what_changes_nothing_may_change():
    spec = small()
    run_study(spec)
    other = small(
        trials=3,
        description="more",
        confirm={"top": 1, "seeds": 1, "baselines": []},
        training={"threads": None},
        max_retries=5,
        grace=9.0,
        stop={"least": 50},
    )
    assert run_study(other).trials.complete == 3

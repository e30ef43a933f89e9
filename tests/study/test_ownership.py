"""Whose a trial is: kept while its result is written, waited for, and released by hand."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState, create_trial
from rich.console import Console
from small_studies import SPACE, make

from bo_act import ActivationSampler, load_space, terminal
from bo_act.errors import StorageError
from bo_act.events import Events
from bo_act.specs import StudySpec
from bo_act.specs.files import read_study
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.runner import run_study
from bo_act.study.running.supervisor import TrialWatcher
from bo_act.study.running.waiting import awaited
from bo_act.study.storage.backends.heartbeats import beats_of
from bo_act.study.storage.heartbeat import silences
from bo_act.study.storage.opening import load_study, open_storage
from bo_act.study.storage.owner import CLAIM, DEATHS, OWNER, Owner, TrialTaken
from bo_act.study.storage.ownership import check_mine, give_back, keeping
from bo_act.study.storage.recorded_settings import SPEC
from bo_act.study.storage.study_view import StudyView

optuna.logging.set_verbosity(optuna.logging.WARNING)

FILE = """
name = "own"
space = "few.toml"
trials = 3
objective = "mine.py:objective"
"""

ELSEWHERE = {"host": "host-b", "pid": 12, "born": "1", "grace": 60.0, "place": "elsewhere"}
GONE = {"pid": 2**22 + 1}
MUTE = {"host": "host-b", "pid": 12, "born": "1", "grace": None}  # of an earlier version


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(SPACE)
    (tmp_path / "own.toml").write_text(FILE)
    (tmp_path / "mine.py").write_text("def objective(trial, activation):\n    return 0.5\n")


@pytest.fixture
def study() -> optuna.Study:
    """The study of the file, with no trial yet."""
    where = "runs/own/study.db"
    return optuna.create_study(study_name="own", storage=open_storage(where), direction="maximize")


def of_file(study: optuna.Study, spec: StudySpec) -> None:
    """Note in a study that a study file made it."""
    study.set_user_attr(SPEC, json.loads(spec.model_dump_json()))


def begin(study: optuna.Study, owner: object, **more: object) -> int:
    """Begin a trial as another process; return its number."""
    template = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner}, **more)
    template.datetime_start = datetime.now() - timedelta(seconds=90)
    study._storage.create_new_trial(study._study_id, template)
    return len(study.trials) - 1


def own(study: optuna.Study, number: int, owner: object) -> None:
    study._storage.set_trial_system_attr(study.trials[number]._trial_id, OWNER, owner)


# --- keeping --------------------------------------------------------------------------------


def test_a_result_is_written_while_the_trial_is_mine_alone(study):
    mine = Trial(study, study._storage.create_new_trial(study._study_id))
    check_mine(study, mine)  # nobody says who runs it
    own(study, 0, Owner.me(3.0).as_attribute())
    with keeping(study, mine):
        mine.set_user_attr("told", 1)
    own(study, 0, ELSEWHERE)
    with pytest.raises(TrialTaken, match=r"trial 0 was taken over by host-b \(pid 12\)"):
        check_mine(study, mine)
    with pytest.raises(TrialTaken), keeping(study, mine):
        mine.set_user_attr("told", 2)
    give_back(study, mine)
    assert study.trials[0].user_attrs == {"told": 1}
    assert study.trials[0].system_attrs[OWNER] == ELSEWHERE
    own(study, 0, None)
    with pytest.raises(TrialTaken, match="trial 0 was released by hand"):
        check_mine(study, mine)


STOLEN = """
import bo_act, optuna
from bo_act.study.storage.backends.heartbeats import beats_of


def objective(trial, activation):
    if trial.number != 1:
        return 0.9
    study, number = trial.study, trial._trial_id
    {happens}
    {body}
"""

TAKEN = f"""study._storage.set_trial_system_attr(number, "{OWNER}", {ELSEWHERE})
    beats_of(study).beat(number)"""


class Ends(Events):
    """The new owner ends the trial while the old one waits for it."""

    def __init__(self) -> None:
        self.waited: list[str] = []

    def opened(self, study):
        self.study = study

    def waiting(self, trials):
        self.waited += [one.text for one in trials]
        if trials:
            self.study.tell(1, 0.2)


def of_objective(body: str, happens: str = TAKEN) -> StudySpec:
    """A study whose second trial is taken over by a worker elsewhere while it is trained here."""
    Path("mine.py").write_text(STOLEN.format(happens=happens, body=body))
    return make(
        name="own",
        storage="runs/own/study.db",
        objective="mine.py:objective",
        trials=3,
        model=None,
        data=None,
    )


@pytest.mark.parametrize(
    "body",
    [
        "return 0.9",
        "raise RuntimeError('the device is lost')",
        "raise optuna.TrialPruned",
        "raise bo_act.Diverged",
    ],
)
def test_what_a_trial_that_was_taken_over_came_to_is_left_out(body):
    """Whatever comes of it here, the new owner's result stands, and nothing beside it."""
    spec, events = of_objective(body), Ends()
    with pytest.warns(UserWarning, match=r"trial 1 was taken over by host-b \(pid 12\)"):
        result = run_study(spec, events=events)
    trials = load_study(spec).trials
    assert [trial.value for trial in trials] == [0.9, 0.2, 0.9]
    assert result.trials.failed == 0
    assert not {"status", "failure", "seconds"} & trials[1].user_attrs.keys()
    assert trials[1].system_attrs[OWNER] == ELSEWHERE
    assert events.waited[0].startswith("waiting for trial 1 of host-b (pid 12), last heartbeat ")


@pytest.mark.parametrize("body", ["return 0.9", "trial.report(0.1, 0)\n    return 0.9"])
def test_a_trial_that_a_person_ends_is_left(body):
    """By Optuna's own means, while a worker has it."""
    spec = of_objective(body, "study.tell(trial.number, state=optuna.trial.TrialState.FAIL)")
    with pytest.warns(UserWarning, match="trial 1 was ended by another process, as FAIL"):
        result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (3, 1)


def test_a_training_that_was_taken_over_stops_at_the_next_epoch():
    spec = make(
        trials=2,
        storage="runs/small/study.db",
        training={"epochs": 20},
        features={"fim": False},
        confirm={"seeds": 0},
    )
    told = []

    def take_over() -> None:
        while not (study := opened(spec)):
            time.sleep(0.1)
        while not study.trials[0].intermediate_values:
            time.sleep(0.02)
        own(study, 0, ELSEWHERE)
        beats_of(study).beat(study.trials[0]._trial_id)
        told.append(len(study.trials[0].intermediate_values))
        while len(study.trials) < 2 or study.trials[1].state != TrialState.COMPLETE:
            time.sleep(0.1)
        told.append(len(study.trials[0].intermediate_values))
        study.tell(0, 0.2)

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.warns(UserWarning, match="trial 0 was taken over by host-b"):
        run_study(spec)
    thread.join()
    assert told[1] <= told[0] + 1 < 20
    assert [trial.state.name for trial in load_study(spec).trials] == ["COMPLETE"] * 2
    assert load_study(spec).trials[0].value == 0.2


def opened(spec) -> optuna.Study | None:
    try:
        study = load_study(spec)
    except StorageError:
        return None
    return study if study.trials else None


# --- waiting --------------------------------------------------------------------------------


def test_waiting_says_for_whom_and_until_when(study):
    heard, silent, never, mute, here = (
        begin(study, owner)
        for owner in (ELSEWHERE, ELSEWHERE, ELSEWHERE, MUTE, Owner.me(60.0).as_attribute())
    )
    begin(study, Owner.me(60.0).as_attribute() | GONE)  # nobody waits for that one
    for number, seconds in ((heard, 4), (silent, 45)):
        beats_of(study).beat(study.trials[number]._trial_id)
        set_back(study, number, seconds)
    found = {one.trial: (one.kind, one.text) for one in awaited(study)}
    whom = "waiting for trial {} of host-b (pid 12), "
    release = "bo-act release STUDY"
    assert found == {
        heard: ("alive", whom.format(0) + "last heartbeat 4 s ago"),
        silent: (
            "silent",
            whom.format(1) + "no heartbeat for 45 s; taken over in 20 s unless a heartbeat arrives",
        ),
        never: (
            "silent",
            whom.format(2) + "no heartbeat so far; taken over in 60 s unless a heartbeat arrives",
        ),
        mute: (
            "mute",
            f"{whom.format(3)}which sends no heartbeats; to release it: {release} 3",
        ),
        here: (
            "alive",
            f"waiting for trial 4 of {Owner.me()}, a process that is alive on this machine",
        ),
    }
    beats_of(study).beat(study.trials[here]._trial_id)
    set_back(study, here, 300)
    (stopped,) = [one.text for one in awaited(study) if one.trial == here]
    said = f"alive here but without a heartbeat for 300 s; to release it: {release} 4 --force"
    assert stopped.endswith(said)
    nobodys = study.ask().number  # begun by a program that does not say who it is
    (text,) = [one.text for one in awaited(study) if one.trial == nobodys]
    assert text.endswith(f"of an unknown process; to release it: {release} 6")


def set_back(study: optuna.Study, number: int, seconds: float) -> None:
    (path,) = Path("runs/own").glob(f"study.db.beat-{study.trials[number]._trial_id}")
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_a_log_says_whom_is_waited_for_once(study, monkeypatch):
    page = io.StringIO()
    monkeypatch.setattr(terminal.progress, "err", Console(file=page, width=80))
    number, mute = begin(study, ELSEWHERE), begin(study, MUTE)
    beats_of(study).beat(study.trials[number]._trial_id)
    with terminal.live(quiet=True) as events:
        for _ in range(3):
            events.waiting(awaited(study))
    (line,) = page.getvalue().splitlines()  # what has no end is said even then
    assert line.startswith(f"waiting for trial {mute} of host-b (pid 12), which sends no")
    page.truncate(page.seek(0))
    with terminal.live(quiet=False) as events:
        for _ in range(3):
            events.waiting(awaited(study))
        assert page.getvalue().count("\n") == 2
        set_back(study, number, 40)
        for _ in range(3):
            events.waiting(awaited(study))
        assert page.getvalue().count("\n") == 3
        events.waiting(())
        events.waiting(awaited(study))  # anew
    text = page.getvalue().splitlines()
    assert len(text) == 5
    assert text[2].startswith(
        f"waiting for trial {number} of host-b (pid 12), no heartbeat for 40 s; ta"
    )


def test_the_live_view_says_whom_is_waited_for(study, monkeypatch):
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(terminal.progress, "err", console)
    begin(study, MUTE)
    with terminal.live(quiet=False) as events:
        events.opened(study)
        events.waiting(awaited(study))
        events.screen._live.refresh()
        shown = page.getvalue()
        assert "waiting for trial 0 of host-b (pid 12), which sends no heartbeats" in shown
        page.truncate(page.seek(0))
        events.waiting(())
        events.screen._live.refresh()
        assert "waiting" not in page.getvalue().rsplit("trials", 1)[0]


def test_the_parent_of_workers_says_who_is_silent(study):
    """Workers have nothing to begin: all trials are done or running."""
    number = begin(study, ELSEWHERE)
    beats_of(study).beat(study.trials[number]._trial_id)
    said = []

    class Says(Events):
        def waiting(self, trials):
            said.append([one.kind for one in trials])

    watch = TrialWatcher(study, 2, Says(), Callbacks([]))
    watch.look()
    assert said == [[]]  # there is another trial to begin
    watch = TrialWatcher(study, 1, Says(), Callbacks([]))
    watch.look()
    set_back(study, number, 40)
    watch.look()
    assert said[1:] == [[], ["silent"]]


# --- by hand --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the first 3 functions")
def test_a_trial_is_given_back_by_hand_and_taken_over(bo_act, study):
    claim = {"activation": "tanh(x)"}
    number = begin(study, MUTE, user_attrs=claim)
    code, out, err = bo_act("release", "own.toml", str(number))
    assert (code, err) == (0, "")
    said = "trial 0 of host-b (pid 12) was released; the next worker runs it again under the same"
    assert out == f"{said} number\n"
    code, _, err = bo_act("release", "own.toml", str(number))
    assert (code, "trial 0 of the study 'own' was already released" in err) == (2, True)
    assert StudyView.of(study).abandoned == {number}
    of_file(study, read_study("own.toml"))
    assert bo_act("worker", "own.toml", "-q")[0] == 0
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    code, _, err = bo_act("release", "own.toml", "1")
    assert (code, "trial 1 of the study 'own' is complete; only a running" in err) == (2, True)


def test_no_heartbeat_outlives_the_study(study):
    """Neither of a trial that too many died over, nor of one that was ended from elsewhere."""
    dead = Owner.me(60.0).as_attribute() | GONE
    often, ended = begin(study, dead), begin(study, dead)
    study._storage.set_trial_system_attr(study.trials[often]._trial_id, DEATHS, 10)
    for number in (often, ended):
        beats_of(study).beat(study.trials[number]._trial_id)
    study.tell(ended, state=TrialState.FAIL)
    spec = make(
        name="own",
        storage="runs/own/study.db",
        objective="mine.py:objective",
        trials=1,
        model=None,
        data=None,
        confirm={"seeds": 0},
    )
    of_file(study, spec)
    run_study(spec)
    assert study.trials[often].state == TrialState.FAIL
    assert not list(Path("runs/own").glob("*.beat-*"))


def test_a_silent_one_is_given_back_as_json(bo_act, study):
    number = begin(study, ELSEWHERE, user_attrs={"activation": "tanh(x)"})
    beats_of(study).beat(study.trials[number]._trial_id)
    set_back(study, number, 30)
    code, out, _ = bo_act("release", "own.toml", "0", "--json")
    assert code == 0
    found = json.loads(out)
    assert found.pop("silent") == pytest.approx(30, abs=5)
    assert found == {
        **{"study": "own", "trial": 0, "activation": "tanh(x)"},
        **{"host": "host-b", "pid": 12},
    }
    assert not list(Path("runs/own").glob("*.beat-*"))


def test_what_lives_is_given_back_by_force_alone(bo_act, study):
    me = begin(study, Owner.me(60.0).as_attribute())
    there = begin(study, ELSEWHERE)
    beats_of(study).beat(study.trials[there]._trial_id)
    code, _, err = bo_act("release", "own.toml", str(me))
    assert code == 2
    assert f"trial 0 is run by process {os.getpid()} of this machine, which is alive; end" in err
    code, _, err = bo_act("release", "own.toml", str(there))
    assert code == 2
    assert re.search(r"trial 1 is run by host-b \(pid 12\), whose last heartbeat was \d s ago", err)
    for number in (me, there):
        assert bo_act("release", "own.toml", str(number), "--force")[0] == 0
    assert StudyView.of(study).abandoned == {me, there}
    gone = begin(study, Owner.me(60.0).as_attribute() | GONE)
    assert bo_act("release", "own.toml", str(gone))[0] == 0


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (TrialState.WAITING, "trial 0 of the study 'own' has not started"),
        (TrialState.FAIL, "trial 0 of the study 'own' has failed"),
        (TrialState.PRUNED, "trial 0 of the study 'own' was pruned"),
    ],
)
def test_only_what_runs_is_given_back(bo_act, study, state, says):
    study.add_trial(create_trial(state=state))
    code, out, err = bo_act("release", "own.toml", "0", "--force")
    assert (code, out, says in err, err.count("\n")) == (2, "", True, 1)


def test_what_is_not_there_cannot_be_given_back(bo_act, study):
    code, _, err = bo_act("release", "own.toml", "7")
    assert (code, "the study 'own' has no trial 7; it has none yet" in err) == (2, True)
    there = ("--storage", "runs/own/study.db", "--set", "name=other")
    code, _, err = bo_act("release", "own.toml", "7", *there)
    assert (code, "has no study 'other'" in err) == (2, True)
    study.add_trial(create_trial(value=0.5, user_attrs={"source": "two"}))
    code, _, err = bo_act("release", "own.toml", "0")
    assert (code, "trial 0 comes from the source 'two'" in err) == (2, True)


# --- how it is doing ------------------------------------------------------------------------


def test_the_status_says_how_long_nothing_was_heard(bo_act, study):
    number = begin(study, ELSEWHERE)
    here = begin(study, Owner.me(60.0).as_attribute())
    begin(study, MUTE)
    for one, seconds in ((number, 30), (here, 300)):
        beats_of(study).beat(study.trials[one]._trial_id)
        set_back(study, one, seconds)
    code, out, _ = bo_act("status", "own.toml", "--json")
    assert code == 0
    found = [(one["silent"], one["alive"]) for one in json.loads(out)["workers"]]
    # As old as set back, and a few seconds of this test's own on a busy machine.
    assert found[0] == (pytest.approx(45, abs=15.5), True)
    assert found[1] == (pytest.approx(315, abs=15.5), True)  # stopped, perhaps
    assert found[2] == (None, True)
    set_back(study, number, 100)
    code, out, _ = bo_act("status", "own.toml")
    assert code == 0
    for word in ("heartbeat", "1[0-3][0-9] s ago", "gone; trial", "3[0-3][0-9] s ago", "never"):
        assert re.search(word, out), word


# --- a loop of one's own --------------------------------------------------------------------


def test_a_loop_of_ones_own_says_that_it_is_alive(tmp_path):
    space = load_space("classic")
    sampler = ActivationSampler(space)
    study = optuna.create_study(storage="sqlite:///loop.db", sampler=sampler)
    seen = []

    def objective(trial: optuna.Trial) -> float:
        space.suggest(trial)
        seen.append(len(list(tmp_path.glob("loop.db.beat-*"))))
        assert silences(study, study.trials)[trial.number].left > 100
        if trial.number == 1:
            raise ValueError("a mistake")
        return 0.5

    study.optimize(objective, n_trials=3, catch=ValueError)
    assert seen == [1, 1, 1]
    assert not list(tmp_path.glob("loop.db.beat-*"))


def test_what_a_loop_elsewhere_died_over_is_proposed_again(tmp_path, monkeypatch):
    monkeypatch.setattr("bo_act.study.storage.owner.GRACE", 0.6)
    space = load_space("classic")
    sampler = ActivationSampler(space)
    study = optuna.create_study(storage="sqlite:///loop.db", sampler=sampler)
    dead = begin(study, ELSEWHERE | {"grace": None})
    claim = space.catalogue.params(space.catalogue.index(space.baselines[0]))
    study._storage.set_trial_system_attr(study.trials[dead]._trial_id, CLAIM, claim)
    deadline = time.monotonic() + 30
    assert len(sampler.view(study).pending) == 1
    while sampler.view(study).pending and time.monotonic() < deadline:
        time.sleep(0.03)
    trial = study.ask()
    assert space.suggest_expression(trial) == space.baselines[0]

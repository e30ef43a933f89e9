"""Trainings that failed: what is told of them, and which are the user's to mend."""

from __future__ import annotations

import errno
import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from small_studies import STORAGE
from studies_of_tests import FEW

from bo_act.benchmark.build import build_benchmark
from bo_act.errors import BenchmarkError, NetworkError, SearchError, SpecError
from bo_act.specs import StudySpec
from bo_act.study.results.confirmation import confirm
from bo_act.study.results.failures import failures
from bo_act.study.results.summary import best_configurations, read_result
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import DEATHS
from bo_act.tasks.failures import group
from bo_act.tasks.task import Task
from bo_act.user_code.failures import Failure, is_machines, one_line

optuna.logging.set_verbosity(optuna.logging.WARNING)

VALUE = "float(activation()(torch.tensor([0.3])))"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(FEW)


def own(body: str, **changes) -> StudySpec:
    """A study with a training function of its own; line 5 is the first of ``body``."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    Path("mine.py").write_text(
        f"import bo_act, optuna, sys, torch\n\n\ndef objective(trial, activation):\n{lines}"
    )
    content = {"name": "own", "space": "few.toml", "trials": 6, "objective": "mine.py:objective"}
    content["storage"] = STORAGE
    return StudySpec.model_validate(content | changes)


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, activation, num_classes):
        super().__init__()
        self.first, self.act = nn.Linear(64, 8), activation()
        self.last = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.act(self.first(x.flatten(1)))
        {line}
        return self.last(x)


def build(activation, *, in_channels, image_size, num_classes):
    return Net(activation, num_classes)
"""

TRAINED = {
    "name": "net",
    "space": "few.toml",
    "storage": STORAGE,
    "trials": 4,
    "model": {"name": "net.py"},
    "data": {"name": "digits", "train": 128, "validation": 100},
    "training": {"epochs": 1, "batch_size": 64, "threads": 1, "device": "cpu"},
    "features": {"fim": False},
    "confirm": {"top": 1, "seeds": 1, "baselines": ["relu(x)"]},
}


def net(line: str = "pass", **changes) -> StudySpec:
    """A study of a model file, whose line 14 is ``line``."""
    Path("net.py").write_text(NET.format(line=line))
    return StudySpec.model_validate(TRAINED | changes)


def states(spec: StudySpec) -> dict[str, int]:
    names = [trial.state.name for trial in load_study(spec).trials]
    return {name: names.count(name) for name in names}


SHAPES = "torch.ones(2, 3) @ torch.ones(4, 5)"
MISMATCH = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
WITH_TANH = "if 'tanh' in str(activation()): "


def toml(name: str = "own", **changes) -> None:
    """Write the study file of ``own``."""
    lines = {"name": name, "space": "few.toml", "trials": 6, "objective": "mine.py:objective"}
    lines["storage"] = STORAGE
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in (lines | changes).items())
    Path(f"{name}.toml").write_text(text)


# --- one line of any exception --------------------------------------------------------------


def raised(text: str, name: str = "mine.py") -> BaseException:
    """Run a user's file and return what it raised."""
    Path(name).write_text(text)
    try:
        exec(compile(text, str(Path(name).absolute()), "exec"), {"__name__": "mine"})
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (mine.py, line 1)"),
        ("import json\njson.loads('{')", "JSONDecodeError: Expecting property name"),
        ("import torch\n\n" + SHAPES, MISMATCH + " (mine.py, line 3)"),
        ("raise SystemExit", "SystemExit (mine.py, line 1)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 (mine.py, line 2)"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded (mine.py, line 1)"),
        ("raise ValueError('a\\nb\\x1b[31mc\\0 ')", "ValueError: a b?[31mc? (mine.py, line 1)"),
        ("raise ValueError('\\udcff[red]')", "ValueError: ?[red] (mine.py, line 1)"),
        (
            "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E",
            "E (mine.py, line 3)",
        ),
        (
            "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
            "ValueError: b (mine.py, line 4)",
        ),
        ("raise ExceptionGroup('many', [KeyError('a')])", "KeyError: 'a' (mine.py, line 1)"),
        ("import bo_act\nbo_act.parse('reluu(x)')", "ExpressionError: unknown operator 'reluu'"),
    ],
)
def test_any_exception_is_one_line_with_its_place(text, says):
    said = one_line(raised(text))
    assert said.startswith(says.removesuffix(")"))
    assert said.endswith(")")
    assert said.isprintable()


def test_syntax_errors_have_their_own_place():
    assert "(mine.py, line 2)" in one_line(raised("a = 1\nb = = 2"))


def test_long_messages_are_cut():
    assert len(one_line(raised("raise ValueError('x' * 10**6)"))) < 400


def test_the_innermost_line_of_the_users_is_told():
    Path("helper.py").write_text("def double(x):\n    return 2 * x.y\n")
    text = "import sys\nsys.path.insert(0, '.')\nimport helper\nhelper.double(3)"
    try:
        assert "(helper.py, line 2)" in one_line(raised(text))
    finally:
        import sys

        sys.path.remove(".")
        sys.modules.pop("helper", None)


def test_what_a_process_of_a_data_loader_raises_is_read_from_its_text():
    inner = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        f'last):\n  File "{torch.__file__}", line 9, in fetch\n'
        f'  File "{Path("mine.py").absolute()}", line 7, in __getitem__\n'
        f'  File "{np.__file__}", line 3, in load\nValueError: no such image\n'
    )
    assert str(Failure.of(ValueError(inner))) == "ValueError: no such image (mine.py, line 7)"


@pytest.mark.parametrize(
    ("error", "machines"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered", 710), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RecursionError("maximum recursion depth exceeded"), False),
        (ValueError("CUDA error is what I say"), False),
        (ExceptionGroup("all", [MemoryError(), TimeoutError()]), True),
        (ExceptionGroup("one", [MemoryError(), KeyError()]), False),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_the_machines_faults_are_told_from_others(error, machines):
    assert is_machines(error) == machines
    wrapped = NetworkError("build failed")
    wrapped.__cause__ = error
    assert is_machines(wrapped) == machines
    assert Failure.of(wrapped).type == type(Failure and error).__name__ or "Group" in repr(error)


def test_what_is_written_to_a_trial_is_read_again():
    found = Failure.of(raised("1 / 0"), blame="file")
    assert Failure.read(json.loads(json.dumps(found.as_attribute()))) == found
    assert Failure.read("RuntimeError: lost") == Failure("RuntimeError", "lost")
    assert Failure.read("11 processes died over it") == Failure("", "11 processes died over it")
    for nothing in (None, "", 3, []):
        assert Failure.read(nothing) is None
    for strange in ({}, {"line": "x", "blame": 3, "message": None}):
        assert isinstance(str(Failure.read(strange)), str)


# --- what is shown --------------------------------------------------------------------------


def test_reasons_are_grouped_in_every_result(bo_act):
    some = "if any(name in str(activation()) for name in ('tanh', 'erf')): "
    spec = own(f"{some}{SHAPES}\nreturn {VALUE}", max_retries=0)
    toml(max_retries=0)
    code, _, told = bo_act("run", "own.toml")
    failed = [t for t in load_study(spec).trials if t.state == TrialState.FAIL]
    assert code == 0
    assert len(failed) >= 2
    reason = f"{MISMATCH} (mine.py, line 5)"
    for trial in failed:  # the line of each in the log
        assert f"fail  {trial.user_attrs['activation']}: {reason}" in " ".join(told.split(" "))
    noted = failed[0].user_attrs["failure"]
    assert f"{noted['type']}: {noted['message']}" == MISMATCH
    assert (noted["file"], noted["line"], noted["blame"]) == ("mine.py", 5, "function")
    for command in ("best", "run", "status"):
        code, told, _ = bo_act(command, "own.toml")
        assert code == 0
        (line,) = [line for line in told.splitlines() if reason in line]
        assert "tanh(x)" in line
        assert f"{len(failed)} times" in line or "twice" in line
        code, told, _ = bo_act(command, "own.toml", "--json")
        (found,) = json.loads(told)["failures"]
        assert found["reason"] == reason
        assert found["count"] == len(failed)
        assert found["trials"] == [t.number for t in failed]
        assert found["activations"] == [t.user_attrs["activation"] for t in failed]
        assert (found["file"], found["line"], found["phase"]) == ("mine.py", 5, "search")
    assert bo_act("report", "own.toml", "-o", "report.html")[0] == 0
    answer = (
        Path("report.html").read_text().partition('id="answer"')[2].partition('id="progress"')[0]
    )
    assert reason in answer
    assert reason in read_result(spec)._repr_html_()
    code, told, _ = bo_act("why", "own.toml", str(failed[0].number))
    assert "failed" in told
    assert "mine.py, line 5" in " ".join(told.split())


def test_strange_messages_are_shown_as_they_are(bo_act):
    bad = r"[/red] [link=x] <b>&amp;! a\x1b[2Jb \0 \udc80"
    own(f"if trial.number: raise RuntimeError('{bad}!')\nreturn {VALUE}", max_retries=0)
    toml(max_retries=0)
    code, _, told = bo_act("run", "own.toml")
    assert code == 2  # five in a row
    assert "[/red] [link=x] <b>&amp;! a?[2Jb ? ?!" in " ".join(told.split())
    assert "\x1b" not in told
    for command in ("best", "status"):
        code, told, _ = bo_act(command, "own.toml")
        assert code == 0
        assert "5 times" in told
    assert bo_act("report", "own.toml", "-o", "r.html")[0] == 0
    assert "<b>&amp;!" not in Path("r.html").read_text().replace("&lt;", "")


def test_a_failing_baseline_stands_beside_the_verdict(bo_act):
    spec = net(f"if 'tanh' in str(self.act): {SHAPES}")
    Path("net.toml").write_text(
        'name = "net"\nspace = "few.toml"\nstorage = "studies.log"\ntrials = 4\n'
        '[model]\nname = "net.py"\n[data]\nname = "digits"\ntrain = 128\nvalidation = 100\n'
        '[training]\nepochs = 1\nbatch_size = 64\nthreads = 1\ndevice = "cpu"\n'
        "[features]\nfim = false\n[confirm]\ntop = 1\nseeds = 1\n"
        'baselines = ["relu(x)", "tanh(x)"]\n'
    )
    result = run_study(spec)
    assert result.confirmed
    (note,) = result.notes
    assert note.startswith("The baseline tanh(x) failed in the search")
    assert f"{MISMATCH} (net.py, line 14)" in note
    # Confirmed against it as well: it has no training there either, and all others do.
    code, told, _ = bo_act("run", "net.toml", "--json")
    found = json.loads(told)
    assert code == 0
    assert "tanh(x)" not in [row["activation"] for row in found["confirmed"]]
    assert [one["phase"] for one in found["failures"]] == ["search", "confirmation"]
    said = " ".join(found["notes"])
    assert "Not confirmed, because all training runs failed: tanh(x)" in said
    assert bo_act("report", "net.toml", "-o", "r.html")[0] == 0
    assert "The baseline tanh(x) failed" in Path("r.html").read_text()
    code, told, _ = bo_act("best", "net.toml")
    assert "The baseline tanh(x) failed" in " ".join(told.split())


def test_a_baseline_without_a_value_says_so_in_the_table(bo_act):
    own(f"if 'relu(x)' == activation().extra_repr(): {SHAPES}\nreturn {VALUE}", max_retries=0)
    Path("few.toml").write_text(FEW.replace('"relu(x)", "tanh(x)"', '"tanh(x)", "relu(x)"'))
    toml(max_retries=0)
    assert bo_act("run", "own.toml")[0] == 0
    told = bo_act("best", "own.toml")[1]
    assert "relu(x) in the same search: failed" in told
    assert "The baseline relu(x) failed in the search" in " ".join(told.split())


def test_processes_that_died_are_told(bo_act):
    spec = own(f"return {VALUE}", trials=2)
    toml(trials=2)
    run_study(spec)
    study = load_study(spec)
    for text, deaths, state in (("exp(x)", 2, "COMPLETE"), ("erf(x)", 10, "FAIL")):
        attributes = {"activation": text}
        if state == "FAIL":
            attributes["failure"] = "11 processes died over it"
        study._storage.create_new_trial(
            study._study_id,
            create_trial(
                state=TrialState[state],
                value=0.5 if state == "COMPLETE" else None,
                system_attrs={DEATHS: deaths},
                user_attrs=attributes,
            ),
        )
    told = bo_act("best", "own.toml")[1]
    (died,) = [line for line in told.splitlines() if "another process took the trial over" in line]
    assert "exp(x)" in died
    assert "twice" in died
    (up,) = [line for line in told.splitlines() if "11 processes died over it" in line]
    assert "erf(x)" in up


def test_failures_of_one_line_are_one_reason():
    def failed(message: str, line: int | None = 5, kind: str = "RuntimeError") -> tuple:
        file = "" if line is None else "net.py"
        return Failure(kind, message, file, line), "relu(x)", 0, 1

    some = [failed("sizes 2 and 3"), failed("sizes 4 and 5"), failed("other", 6)]
    assert [one.count for one in group("search", some)] == [2, 1]
    some = [failed(f"Tried to allocate {k} MiB", None) for k in range(3)] + [failed("lost", None)]
    assert [one.count for one in group("search", some)] == [3, 1]


def test_callbacks_that_exit_lose_nothing():
    Path("told.py").write_text("import sys\ndef log(study, trial):\n    sys.exit(0)\n")
    spec = own(f"return {VALUE}", callbacks=["told.py:log"], trials=3)
    with pytest.warns(
        UserWarning, match=r"told\.py:log failed .*SystemExit: 0 \(told.py, line 3\)"
    ):
        assert run_study(spec).trials.complete == 3
    assert Callbacks.of(spec)


# --- whose it is ----------------------------------------------------------------------------

RAISED = [
    "sys.exit()",
    "sys.exit(0)",
    "exit(3)",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "assert False, 'no'",
    "next(iter([]))",
    "objective(trial, activation)",
    "raise RuntimeError('mine')",
    "open('not_there')",
    "undefined",
    "bo_act.parse('reluu(x)')",
    SHAPES,
]


@pytest.mark.parametrize("line", RAISED)
def test_what_a_training_function_raises_at_first_is_its_own(line, bo_act):
    spec = own(f"{line}\nreturn {VALUE}")
    toml()
    code, out, told = bo_act("run", "own.toml", "--quiet")
    assert code == 2
    assert out == ""
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "(mine.py, line 5)" in told
    assert "Traceback" not in told
    (trial,) = load_study(spec).trials
    assert trial.state == TrialState.RUNNING  # given back
    assert trial.user_attrs["failure"]["blame"] == "file"


def test_a_study_goes_on_once_its_file_is_mended(bo_act):
    spec = own("sys.exit(0)")
    toml()
    assert bo_act("run", "own.toml", "-q")[0] == 2
    assert "SystemExit: 0 (mine.py, line 5)" in bo_act("status", "own.toml")[1]
    own(f"return {VALUE}")
    result = run_study(spec)
    assert states(spec) == {"COMPLETE": 6}
    assert result.failures == ()
    assert result.baseline.value == pytest.approx(0.3)
    undisturbed = spec.model_copy(update={"name": "undisturbed"})
    run_study(undisturbed)
    both = (load_study(one).trials for one in (spec, undisturbed))
    mended, other = ([trial.user_attrs["activation"] for trial in trials] for trials in both)
    assert mended == other


def test_later_it_is_the_functions(bo_act):
    """One that raises for some functions costs these and nothing else."""
    spec = own(f"{WITH_TANH}sys.exit(3)\nreturn {VALUE}", max_retries=1)
    result = run_study(spec)
    assert result.trials.finished == 6
    assert "tanh" not in "".join(found.activation for found in result.top)
    tried = [t.user_attrs["activation"] for t in load_study(spec).trials if t.state.name == "FAIL"]
    assert tried.count("tanh(x)") == 2  # tried again once
    (found,) = result.failures
    assert found.reason == "SystemExit: 3 (mine.py, line 5)"


@pytest.mark.parametrize("fault", ["MemoryError()", "torch.OutOfMemoryError('CUDA out of memory')",
                                   "OSError(28, 'No space left on device')"])  # fmt: skip
def test_the_machines_faults_are_tried_again_from_the_first_trial_on(fault):
    spec = own(f"if trial.number == 0: raise {fault}\nreturn {VALUE}")
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (6, 1)
    trials = load_study(spec).trials
    assert trials[0].user_attrs["failure"]["blame"] == "machine"
    assert trials[1].user_attrs["activation"] == trials[0].user_attrs["activation"] == "relu(x)"
    assert result.failures[0].activations == ("relu(x)",)
    assert result.notes == ()  # it has a value by now


def test_a_machine_that_stays_broken_ends_the_study_with_its_reason():
    spec = own("raise MemoryError('all of it')")
    with pytest.raises(SearchError, match=r"5 trials failed .* MemoryError: all of it \(mine.py"):
        run_study(spec)
    assert states(spec) == {"FAIL": 5}


def test_functions_that_fail_one_after_the_other_are_counted_and_not_their_repetitions():
    spec = own(f"if trial.number and trial.number < 10: {SHAPES}\nreturn {VALUE}", max_retries=2)
    assert run_study(spec).trials.complete == 6  # nine trials in a row, of three functions
    again = own(f"if trial.number: {SHAPES}\nreturn {VALUE}", max_retries=2, name="again")
    with pytest.raises(SearchError, match="5 functions failed in a row"):
        run_study(again)


def test_what_was_reported_before_a_file_failed_counts_for_nothing():
    body = f"for step in range(3): trial.report(step, step)\n{{}}\nreturn {VALUE}"
    spec = own(body.format("1 / 0"))
    for _ in range(4):  # more often than a function may fail
        with pytest.raises(SpecError, match="ZeroDivisionError"):
            run_study(spec)
    study = load_study(spec)
    assert states(spec) == {"FAIL": 4}
    assert {t.user_attrs["activation"] for t in study.trials} == {"relu(x)"}
    assert {t.user_attrs["failure"]["blame"] for t in study.trials} == {"file"}


def test_a_function_that_a_person_asked_for_is_not_lost():
    spec = own(f"trial.report(0.5, 0)\n1 / 0\nreturn {VALUE}")
    with pytest.raises(SpecError):
        run_study(spec)
    study = load_study(spec)
    asked = dict(study.trials[0].params)
    study.enqueue_trial(asked)
    for _ in range(2):
        with pytest.raises(SpecError):
            run_study(spec)
    waiting = [t for t in load_study(spec).trials if t.state == TrialState.WAITING]
    assert [t.system_attrs["fixed_params"] for t in waiting] == [asked]


@pytest.mark.parametrize("swallow", [False, True])
def test_ctrl_c_in_a_training_function_is_a_person(swallow):
    """Also where the function turns it into something else, as trainers of other libraries do."""
    line = (
        "import os, signal\ntry:\n    if trial.number == 1: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    line += "except KeyboardInterrupt:\n    " + ("pass" if swallow else "sys.exit(1)")
    spec = own(f"{line}\nreturn {VALUE}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    with pytest.raises(KeyboardInterrupt):
        run_study(spec)
    assert states(spec) == {"COMPLETE": 1, "RUNNING": 1}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_network_that_fails_at_a_later_step_is_the_files():
    line = "self.n = getattr(self, 'n', 0) + self.training\n        if self.n > 2: 1 / 0"
    spec = net(line, training=TRAINED["training"] | {"batch_size": 16, "epochs": 2})
    with pytest.raises(NetworkError, match=r"training failed: ZeroDiv.*net\.py, line 15.*; fix it"):
        run_study(spec)
    assert states(spec) == {"RUNNING": 1}
    net()
    assert run_study(spec).trials.complete == 4


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["process", "ray"])
def test_several_workers_stop_with_one_message(executor, bo_act):
    if executor == "ray":
        pytest.importorskip("ray")
    spec = own("import time\ntime.sleep(1)\n1 / 0")
    toml()
    code, out, told = bo_act("run", "own.toml", "-q", "--workers", "3", "--executor", executor)
    assert (code, out) == (2, "")
    assert told.count("ZeroDivisionError") == 1
    assert "(mine.py, line 7)" in told
    assert "Traceback" not in told
    assert set(states(spec)) == {"RUNNING"}
    own(f"return {VALUE}")
    run_study(spec)
    assert states(spec) == {"COMPLETE": 6}


@pytest.mark.slow
def test_a_worker_that_is_ended_from_inside_has_not_finished():
    """``os._exit`` is no word of being done: the trial is taken over, by a new worker."""
    spec = own(
        "import os\n"
        "if trial.number < 2 and not os.path.exists(f'{trial.number}'):\n"
        "    open(f'{trial.number}', 'w').close()\n"
        f"    os._exit(0)\nreturn {VALUE}"
    )
    result = run_study(spec, workers=2)
    assert states(spec) == {"COMPLETE": 6}
    (died,) = result.failures
    assert died.trials == (0, 1)


# --- confirmations and benchmarks -----------------------------------------------------------


def failing(monkeypatch, fails) -> None:
    """Let trainings with some fresh seeds fail; ``fails(text, seed)``."""
    train = Task.train

    def flaky(self, expression, *, seed, report=None, **options):
        if report is None and fails(str(expression), seed - 10_000):
            raise RuntimeError("CUDA error: lost")
        return train(self, expression, seed=seed, report=report, **options)

    monkeypatch.setattr(Task, "train", flaky)


def confirmed(fails):
    """Run a study, some fresh-seed trainings of which fail."""
    spec = net(confirm={"top": 1, "seeds": 3, "baselines": ["relu(x)", "gelu(x)"]})
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, fails)
        return spec, run_study(spec)


def test_a_failed_training_of_the_confirmation_is_noted_and_made_again():
    spec, result = confirmed(lambda text, seed: text == "gelu(x)" and seed == 1)
    assert {row.seeds for row in result.confirmed} == {2}
    (found,) = result.failures
    assert (found.phase, found.count, found.activations) == ("confirmation", 1, ("gelu(x)",))
    assert "over the 2 of 3 seeds" in " ".join(result.notes)
    assert read_result(spec) == result
    again = run_study(spec)
    assert {row.seeds for row in again.confirmed} == {3}
    assert (again.failures, again.notes) == ((), ())


def test_one_whose_every_training_fails_is_left_out():
    _, result = confirmed(lambda text, _: text == "gelu(x)")
    assert "gelu(x)" not in {row.activation for row in result.confirmed}
    assert {row.seeds for row in result.confirmed} == {3}
    assert "all training runs failed: gelu(x)" in " ".join(result.notes)


def test_without_relu_there_is_a_table_and_no_comparison():
    space = FEW.replace('"relu(x)", "tanh(x)"', '"tanh(x)"').replace('"relu", ', "")
    Path("few.toml").write_text(space)
    _, result = confirmed(lambda text, _: text == "relu(x)")
    assert result.confirmed
    assert all(row.minus_relu is None for row in result.confirmed)
    assert "there is no comparison" in result._repr_html_()


def test_a_confirmation_in_which_all_fails_ends(monkeypatch):
    spec = net(confirm={"top": 1, "seeds": 3})
    failing(monkeypatch, lambda *_: True)
    with pytest.raises(SearchError, match="5 training runs of the confirmation failed"):
        run_study(spec)
    result = read_result(spec)
    assert result.confirmed == ()
    assert result.failures[0].count == 5


@pytest.mark.slow
def test_what_no_worker_survives_is_a_failure_too():
    """Three workers die over each training of one function; the others are measured."""
    spec = net(
        "import os\n        if 'gelu' in str(self.act) and os.getpid() != parent: os._exit(9)",
        confirm={"top": 1, "seeds": 1, "baselines": ["relu(x)", "gelu(x)"]},
    )
    text = (
        Path("net.py")
        .read_text()
        .replace("import torch\n", f"import torch\nparent = {os.getpid()}\n")
    )
    Path("net.py").write_text(text)
    run_study(spec.model_copy(update={"confirm": spec.confirm.model_copy(update={"seeds": 0})}))
    study = load_study(spec)
    task = Task.load(spec)
    rows = confirm(task, study, best_configurations(study, spec), workers=2)
    assert "gelu(x)" not in {row.activation for row in rows}
    assert "3 workers died" in read_result(spec).failures[0].reason


def test_a_build_goes_on_past_what_fails_and_makes_it_again():
    spec = net(f"if 'tanh' in str(self.act) and not self.calm: {SHAPES}")
    text = Path("net.py").read_text()
    Path("net.py").write_text(text.replace("class Net", "import os\nclass Net").replace(
        "self.calm", "os.path.exists('calm')"))  # fmt: skip
    Path("few.toml").write_text(
        'name = "few"\nexpressions = ["relu(x)", "tanh(x)", "erf(x)"]\nbaselines = ["relu(x)"]\n'
    )
    with pytest.raises(BenchmarkError, match="1 runs failed: 1 times RuntimeError: mat1") as caught:
        build_benchmark(spec, seeds=1)
    assert "net.py, line 15" in str(caught.value)
    assert "2 of 3 are saved" in str(caught.value)
    Path("calm").touch()
    assert len(build_benchmark(spec, seeds=1)) == 3


def test_source_trials_have_no_failures():
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert failures(study.get_trials()) == []

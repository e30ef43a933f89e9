"""Tables, verdicts and the live view, as text."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from bo_act import terminal
from bo_act.features.table import Block, FeatureTable
from bo_act.metrics import Metric
from bo_act.study.results.confirmed import Confirmed, Difference, Interval
from bo_act.study.results.failures import nothing_found
from bo_act.study.results.summary import Found, StudyResult
from bo_act.study.storage.trials import Counts


def row(name: str, test: float, validation: float, gain: tuple | None, role="found") -> Confirmed:
    return Confirmed(
        activation=name,
        settings={},
        tried=1,
        role=role,
        seeds=5,
        diverged=1 if name == "exp(x)" else 0,
        test=Interval(test, test - 0.01, test + 0.01),
        validation=Interval(validation, validation - 0.01, validation + 0.01),
        minus={} if gain is None else {"relu(x)": Difference(*gain, p=0.01)},
    )


RELU = row("relu(x)", 0.90, 0.90, None, role="baseline")


@pytest.fixture
def screen(monkeypatch):
    def show(result: StudyResult, width: int = 100) -> str:
        page = io.StringIO()
        wide = Console(file=page, width=width, highlight=False)
        monkeypatch.setattr(terminal.tables, "out", wide)
        terminal.study_tables(result)
        return page.getvalue()

    return show


def result(*confirmed: Confirmed) -> StudyResult:
    found = (Found("tanh(x)", 0.95, 7), Found("relu(x)", 0.9, 1))
    return StudyResult(
        "s", "runs/s/study.db", Counts(complete=9, diverged=2), found[0], found[1], found, confirmed
    )


def test_the_verdict_is_on_the_best_by_validation_not_by_test(screen):
    lucky = row("erf(x)", test=0.99, validation=0.91, gain=(0.09, 0.08, 0.10))
    chosen = row("tanh(x)", test=0.93, validation=0.94, gain=(0.03, 0.02, 0.04))
    text = " ".join(screen(result(lucky, chosen, RELU)).split())
    assert "tanh(x), the best by validation, is better than ReLU: +3.00 ±1.00" in text


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        ((0.01, -0.01, 0.03), "the interval includes zero, so nothing is confirmed"),
        ((-0.03, -0.04, -0.02), "is worse than ReLU: -3.00 ±1.00"),
        ((0.02, None, None), "one seed gives no interval"),
        (None, "ReLU itself has the best fresh validation accuracy"),
    ],
)
def test_what_is_not_confirmed_is_not_claimed(screen, gain, says):
    text = " ".join(screen(result(row("tanh(x)", 0.9, 0.94, gain), RELU)).split())
    assert says in text
    assert "is better than" not in text


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        (1, "test set (1 fresh seed)"),
        (5, "test set (5 fresh seeds, mean and 95% interval over seeds alone)"),
    ],
)
def test_one_seed_has_no_interval(screen, seeds, says):
    rows = [replace(one, seeds=seeds) for one in (row("tanh(x)", 0.9, 0.94, None), RELU)]
    assert says in " ".join(screen(result(*rows)).split())


def test_a_loss_below_that_of_relu_is_better(screen):
    loss = Metric("loss", "minimize", "nats")
    worse = row("erf(x)", test=2.2, validation=2.3, gain=(0.1, 0.05, 0.15))
    chosen = row("tanh(x)", test=2.1033, validation=2.0, gain=(-0.03, -0.04, -0.02))
    some = [replace(one, searched=1.9) for one in (worse, chosen)]
    shown = replace(result(*some, row("relu(x)", 2.13, 2.2, None, role="baseline")), metric=loss)
    text = " ".join(screen(shown).split())
    assert "tanh(x), the best by validation, is better than ReLU: -0.030 ±0.010" in text
    assert "in test loss against ReLU" in text
    assert "tanh(x) had 1.9 nats validation loss in the search and has 2 nats with fresh" in text
    assert "0.1 of selection bias" in text
    assert "accuracy" not in text
    assert "%" not in text.replace("95%", "")


def test_divergence_is_shown_and_tables_fit_a_narrow_terminal(screen):
    shown = result(row("exp(x)", 0.9, 0.94, (0.01, 0.0, 0.02)), RELU)
    assert "exp(x) (1 of 5 diverged)" in screen(shown)
    text = screen(shown, width=60)
    assert "9 complete (2 diverged)" in text
    assert max(map(len, text.splitlines()[1:])) <= 60


def test_a_study_without_trials(screen):
    relu = Found("relu(x)", None, None)
    text = screen(StudyResult("s", "x.db", Counts(), None, relu, lacking=nothing_found([])))
    assert "No function has been evaluated yet." in text


def trial(state: TrialState, value: float | None, **attributes):
    return create_trial(state=state, value=value, user_attrs={"activation": "elu(x)", **attributes})


def test_the_live_view_names_every_kind_of_trial(monkeypatch):
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=90, color_system=None)
    monkeypatch.setattr(terminal.progress, "err", console)
    with terminal.live(quiet=False) as events:
        events.features(5, 10)
        events.search(1, 4, trial(TrialState.COMPLETE, 0.9), 0.9)
        events.search(2, 4, trial(TrialState.COMPLETE, 0.1, status="diverged"), 0.9)
        events.search(3, 4, trial(TrialState.PRUNED, 0.5), 0.9)
        events.search(4, 4, trial(TrialState.FAIL, None), 0.9)
        events.confirmation(0, 3, "tanh(x)")
    text = page.getvalue()
    for word in ("  0.9 ", "diverged", "pruned", "fail", "trials/min", "tanh(x)"):
        assert word in text


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch):
    page = io.StringIO()
    quiet = Console(file=page, force_terminal=False, width=90)
    monkeypatch.setattr(terminal.progress, "err", quiet)
    with terminal.live(quiet=False) as events:
        for done in range(11):
            events.features(done, 10)
    assert page.getvalue() == "features of the space: 10 of 10 to do\n"
    page.truncate(0)
    with terminal.live(quiet=True) as events:
        events.features(1, 10)
    assert page.getvalue().strip("\x00") == ""


def test_a_log_file_gets_a_line_a_minute(monkeypatch):
    page = io.StringIO()
    now = [0.0]
    quiet = Console(file=page, force_terminal=False, width=90)
    monkeypatch.setattr(terminal.progress, "err", quiet)
    monkeypatch.setattr(terminal.progress.time, "monotonic", lambda: now[0])
    with terminal.live(quiet=False) as events:
        for done in range(1000, 3001, 100):  # 1,000 were kept; ten seconds for each hundred
            events.features(done, 3000)
            now[0] += 10
    first, *lines = page.getvalue().splitlines()
    assert first == "features of the space: 2000 of 3000 to do"
    assert lines[0] == "features of the space: 1,600 of 3,000, 10 functions/s, 0:02:20 left"
    assert len(lines) == 3


def test_rate_and_time_left_are_shown(monkeypatch):
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(terminal.progress, "err", console)
    with terminal.live(quiet=False) as events:
        for done in (100, 200, 300):
            events.features(done, 100_000)
            time.sleep(0.05)
    assert "functions/s" in page.getvalue()
    assert "left" in page.getvalue()


def test_where_the_spectra_are_and_what_they_say_nothing_of(monkeypatch):
    page = io.StringIO()
    monkeypatch.setattr(terminal.console, "out", Console(file=page, width=100))
    provenance = {
        "layers": ("conv", "head"),
        "uncovered": ("positions",),
        "store": {"folder": "/kept/abc", "bytes": 1_234_567},
    }
    block = Block(np.zeros((1, 1), dtype=np.float32), ("",))
    terminal.feature_store(FeatureTable("h", {"fim": block}, provenance))
    text = page.getvalue()
    for shown in ("conv, head", "positions (the spectra do not", "/kept/abc (1.23 MB)"):
        assert shown in text
    page.truncate(0)
    terminal.feature_store(FeatureTable("h", {"fim": block}))
    assert page.getvalue().strip("\x00") == ""


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (54_321, "54.3 kB"), (2e12, "2e+03 GB"), (7e9, "7 GB")],
)
def test_sizes(count, shown):
    assert terminal.size(count) == shown


@pytest.mark.parametrize(
    ("terminal_there", "moment", "shown"),
    [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)],
)
def test_the_bar_of_a_grouping_is_for_a_terminal_and_for_long_work(
    monkeypatch, terminal_there, moment, shown
):
    page = io.StringIO()
    monkeypatch.setattr(terminal.progress, "err", Console(file=page, force_terminal=terminal_there))
    monkeypatch.setattr(terminal.progress, "_MOMENT", moment)
    with terminal.counting("grouping") as progress:
        progress(30, 100)
        progress(60, 100)
    assert ("grouping" in page.getvalue()) == shown


@pytest.fixture
def searched():
    """A study with a trial of each state, of which one is being trained."""
    study = optuna.create_study(direction="maximize")
    study.add_trial(trial(TrialState.COMPLETE, 0.91))
    study.add_trial(trial(TrialState.COMPLETE, 0.1, status="diverged"))
    study.add_trial(trial(TrialState.FAIL, None))
    running = study.ask()
    running.set_user_attr("activation", "mul(erf(x),sigmoid(x))")
    running.set_user_attr("proposal", {"by": "acquisition", "expected": 0.9312})
    for epoch, accuracy in enumerate((0.1, 0.5, 0.9)):
        running.report(accuracy, epoch)
    return study


@pytest.mark.parametrize("width", [100, 40])
def test_the_live_view_follows_a_study(searched, width, monkeypatch):
    monkeypatch.setattr(terminal.now, "_LOOK", 0.0)
    page = io.StringIO()
    console = Console(file=page, width=width, highlight=False)
    view = terminal.now.Now(searched)
    console.print(view)
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("best   0.91  elu(x)  trial 0")
    if width == 100:
        shown = "#3     mul(erf(x),sigmoid(x))  ▁▅█ 0.9 epoch 3  acquisition, expected 0.9312"
        assert lines[1].rstrip() == shown
    assert lines[2].startswith("trials 2 complete (1 diverged), 1")
    searched.tell(3, 0.95)
    page.truncate(0)
    console.print(view)
    assert "best   0.95  mul(erf(x),sigmoid(x))" in page.getvalue()


def test_a_line_a_trial_stays_and_the_cursor_comes_back(searched, monkeypatch):
    """Also with Ctrl-C, and with a drawing of changing height below."""
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=90, color_system=None)
    monkeypatch.setattr(terminal.progress, "err", console)
    monkeypatch.setattr(terminal.progress, "_REDRAW", 0.001)
    monkeypatch.setattr(terminal.now, "_LOOK", 0.0)

    def work():
        with terminal.live(quiet=False) as events:
            events.opened(searched)
            for number in range(40):
                searched.ask().set_user_attr("proposal", {"by": "random"})
                last = create_trial(state=TrialState.COMPLETE, value=0.5)
                last.number = number
                events.search(number, 40, last, 0.91)
                time.sleep(0.003)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    screen = drawn(page.getvalue())
    assert [int(line.split()[0]) for line in screen[:40]] == list(range(40))
    assert page.getvalue().rindex("\x1b[?25h") > page.getvalue().rindex("\x1b[?25l")


def drawn(text: str) -> list[str]:
    """Return the lines that a terminal shows at the end; it knows what rich makes use of."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif part[0] not in "\x1b\r":
            lines[row] = part + lines[row][len(part) :]
    return lines


def test_a_log_gets_what_is_better_and_a_line_a_minute(monkeypatch):
    page = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(terminal.progress, "err", Console(file=page, force_terminal=False))
    monkeypatch.setattr(terminal.progress.time, "monotonic", lambda: now[0])
    with terminal.live(quiet=False) as events:
        best = 0.5
        events.search(0, 100, None, None)
        for done in range(1, 13):
            now[0] += 10
            best = 0.7 if done >= 3 else best
            events.search(done, 100, trial(TrialState.COMPLETE, 0.5), best)
    lines = page.getvalue().splitlines()
    assert lines[0] == "search: 100 of 100 to do"
    places = [int(re.search(r"(\d+) of 100  ", line)[1]) for line in lines[1:]]
    assert places == [1, 3, 6, 12]

"""Samplers of one's own in a comparison: from files, modules and closures, here and in workers."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

import bo_act
from bo_act.comparison import compare as comparing
from bo_act.comparison.compare import compare
from bo_act.comparison.own_sampler import OwnSampler
from bo_act.comparison.plan import read_plan
from bo_act.errors import BenchmarkError
from bo_act.features.table import FeatureTable
from bo_act.search.method import METHODS

ONE = ["one.parquet"]
FAST = {"evaluations": 10, "seeds": 2}
MINE = "my_method.py:make_sampler"


def make_sampler(space, features, seed):
    """At the top level of a module, so that it travels."""
    assert len(features) == len(space.catalogue)
    return TPESampler(seed=seed, n_startup_trials=4)


def write(name: str, code: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    return path


TPE = """
    import optuna

    def make_sampler(seed):
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
"""

FAILS = """
    import optuna

    class Mine(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            if len(study.trials) > 7:
                raise ValueError("no more")
            return super().sample_independent(study, trial, name, distribution)

    def make_sampler(seed):
        return Mine(seed=seed)
"""


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """What is replayed, in the order in which it is begun."""
    found: list[str] = []
    replayed = comparing._replayed
    monkeypatch.setattr(
        comparing,
        "_replayed",
        lambda job, runs, workers: (found.extend(map(str, runs)), replayed(job, runs, workers))[1],
    )
    return found


def untimed(found) -> pd.DataFrame:
    return found.steps.drop(columns="suggest_seconds")


def steps_of(found, method: str) -> list[int]:
    return found.steps.loc[found.steps["method"] == method, "index"].tolist()


# --- what is called, and with what --------------------------------------------------------------


def test_functions_files_and_names_in_one_comparison(files):
    write("my_method.py", TPE)
    beta = 4
    found = compare(
        ONE,
        {
            "module": make_sampler,
            "lambda": lambda seed: TPESampler(seed=seed, n_startup_trials=4),
            "closure": lambda seed: TPESampler(seed=seed, n_startup_trials=beta),
            "class": RandomSampler,
            "partial": functools.partial(TPESampler, n_startup_trials=4),
            "file": MINE,
            "default": "default",
            "spec": METHODS["optuna_random"],
        },
        **FAST,
    )
    assert list(found.summary["methods"]) == [
        *("module", "lambda", "closure", "class", "partial", "file", "default", "spec")
    ]
    wanted = steps_of(found, "module")
    assert len(wanted) == 20
    for name in ("lambda", "closure", "partial", "file"):
        assert steps_of(found, name) == wanted, name
    assert steps_of(found, "class") == steps_of(found, "spec") != wanted


def test_the_initial_design_is_that_of_all(files):
    found = compare(ONE, {"mine": make_sampler, "random": "random"}, initial=3, **FAST)
    count = len(bo_act.load_space("classic").baselines) + 3
    for _, runs in found.steps.groupby("seed"):
        mine, other = (runs.loc[runs["method"] == name, "index"] for name in ("mine", "random"))
        assert mine.tolist()[:count] == other.tolist()[:count]


def test_a_function_gets_what_it_asks_for_by_name(files):
    got = []

    def all_of_it(**options):
        got.append(options)
        return RandomSampler(seed=options["seed"])

    def some(*, seed, features, level=3):
        got.append({"seed": seed, "features": features, "level": level})
        return RandomSampler(seed=seed)

    compare(ONE, {"a": all_of_it, "b": some}, **FAST)
    everything, some_of_it = got[:2]
    assert set(everything) == {"space", "features", "seed"}
    assert everything["seed"] == 0
    assert everything["space"].name == "classic"
    assert isinstance(some_of_it["features"], FeatureTable)
    assert some_of_it["level"] == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda study: None,
            r"<lambda> \(.*py, line \d+\) asks for study.*space, features and seed",
        ),
        (lambda seed, /: None, r"asks for seed by position.*space, features and seed"),
        (lambda seed: 3, r"to return an Optuna sampler, got int"),
        (lambda: TPESampler, r"to return an Optuna sampler, got the class TPESampler"),
        (3, r"expected .*got int"),
        (TPESampler(), r"got TPESampler.*for each search"),
    ],
)
def test_what_makes_no_sampler(files, function, message):
    with pytest.raises(BenchmarkError, match=message) as caught:
        compare(ONE, {"mine": function}, **FAST)
    assert "\n" not in str(caught.value)


def test_one_sampler_for_two_searches_is_refused(files):
    sampler = RandomSampler(seed=0)
    with pytest.raises(BenchmarkError, match=r"a new sampler for each search.*test_own_sampler.py"):
        compare(ONE, {"mine": lambda: sampler}, **FAST)


def test_learning_from_other_benchmarks_begins_with_what_is_good_there(files):
    found = compare(ONE, {"mine": make_sampler, "default": "default"}, seeds=1, evaluations=8,
                    warm_start=["two.parquet"])  # fmt: skip
    assert steps_of(found, "mine")[:5] == steps_of(found, "default")[:5]


# --- names --------------------------------------------------------------------------------------


def test_a_file_gives_its_functions_name(files):
    write("my_method.py", TPE)
    write("other.py", TPE)
    write("tpe.py", TPE.replace("make_sampler", "tpe"))
    quick = {"seeds": 1, "evaluations": 6}
    assert list(compare(ONE, [MINE, "random"], **quick).summary["methods"]) == [
        "make_sampler",
        "random",
    ]
    two = compare(ONE, [MINE, "other.py:make_sampler", "x=tpe.py:tpe", "tpe.py:tpe"], **quick)
    assert list(two.summary["methods"]) == [
        "my_method.make_sampler",
        "other.make_sampler",
        "x",
        "tpe.tpe",
    ]


@pytest.mark.parametrize(
    "methods",
    [
        [MINE, MINE],
        [MINE, "folder/my_method.py:make_sampler"],
        ["mine=" + MINE, ("mine", make_sampler)],
        ["random", "random"],
    ],
)
def test_two_methods_of_one_name_are_refused(files, methods):
    write("my_method.py", TPE)
    write("folder/my_method.py", TPE)
    with pytest.raises(BenchmarkError, match=r"two methods are named '.*'.*NAME=FILE\.py"):
        compare(ONE, methods, **FAST)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"random": make_sampler}, "'random'.*built-in method has that name"),
        ({"random": "default"}, "'random'.*built-in method has that name"),
        ({"": make_sampler}, "expected a name"),
        ({"a\nb": make_sampler}, "expected a name"),
        ({"mine": "my_methods.py:make_sampler"}, "my_methods.py' cannot be read"),
        ({"mine": "my_method.py:make_sampeler"}, "no function 'make_sampeler'.*make_sampler"),
        ({"mine": "my_method.py"}, "expected 'FILE.py:FUNCTION', got 'my_method.py'"),
        (["my_mehtod"], "no method named 'my_mehtod'.*FILE.py:FUNCTION"),
    ],
)
def test_methods_that_cannot_be(files, methods, message):
    write("my_method.py", TPE)
    with pytest.raises(BenchmarkError, match=message):
        compare(ONE, methods, **FAST)


# --- several workers ----------------------------------------------------------------------------


def test_workers_change_nothing(files):
    write("my_method.py", TPE)
    write("helpers.py", "from optuna.samplers import RandomSampler\n")
    write("two.py", "import helpers\nmake = lambda seed: helpers.RandomSampler(seed)\n")
    beta, where = 5, []

    def closure(seed):
        where.append(os.getpid())
        return TPESampler(seed=seed, n_startup_trials=beta)

    methods = {"mine": MINE, "two": "two.py:make", "module": make_sampler, "closure": closure}
    methods |= {"random": "random"}
    alone = compare(ONE, methods, **FAST)
    shared = compare(ONE, methods, **FAST, workers=2)
    pd.testing.assert_frame_equal(untimed(alone), untimed(shared))
    assert where == [os.getpid()] * 4  # what cannot travel stays here


def test_a_function_of_a_notebook_stays_here(monkeypatch):
    main = sys.modules["__main__"]
    function = in_a_notebook("def make(seed):\n    pass")["make"]
    monkeypatch.setattr(main, "make", function, raising=False)
    monkeypatch.setattr(main, "__file__", "program.py", raising=False)
    assert OwnSampler("make", given=function).travels
    monkeypatch.delattr(main, "__file__")
    assert not OwnSampler("make", given=function).travels
    assert OwnSampler("make", given=make_sampler).travels


@pytest.mark.slow
def test_what_fails_in_a_worker_is_told_as_here(files):
    write("my_method.py", FAILS)
    said = []
    for workers in (1, 2):
        with pytest.raises(BenchmarkError) as caught:
            compare(ONE, {"mine": MINE}, **FAST, workers=workers)
        said.append(re.sub(r"seed \d", "seed N", str(caught.value)))
    assert said[0] == said[1]
    assert "ValueError: no more (my_method.py, line 7)" in said[0]


# --- what is kept -------------------------------------------------------------------------------


def test_a_changed_file_is_run_anew_and_nothing_else(files, ran):
    write("my_method.py", "import parts\n" + textwrap.dedent(TPE))
    write("parts.py", "NUMBER = 1\n")
    write("other.py", TPE)
    methods = [MINE, "other.py:make_sampler", "random"]
    out = files / "out"
    first = compare(ONE, methods, **FAST, out=out)
    ran.clear()
    again = compare(ONE, methods, **FAST, out=out)
    assert ran == []
    pd.testing.assert_frame_equal(first.steps, again.steps)
    write("parts.py", "NUMBER = 2\n")
    compare(ONE, methods, **FAST, out=out)
    assert ran == [f"my_method.make_sampler on one.parquet with seed {n}" for n in range(2)]
    ran.clear()
    write("my_method.py", "import parts\n" + textwrap.dedent(TPE).replace("=4", "=5"))
    compare(ONE, methods, **FAST, out=out)
    assert len(ran) == 2
    ran.clear()
    write("my_method.py", "import parts\n" + textwrap.dedent(TPE))
    assert len(compare(ONE, methods, **FAST, out=out).steps) == 60
    assert len(ran) == 0  # what it was before, has its runs


def test_another_name_for_a_method_has_its_runs(files, ran):
    write("my_method.py", TPE)
    write("other.py", TPE.replace("=4", "=5"))
    out = files / "out"
    compare(ONE, [MINE], **FAST, out=out)
    ran.clear()
    found = compare(ONE, [MINE, "other.py:make_sampler"], **FAST, out=out)
    assert [run.split()[0] for run in ran] == ["other.make_sampler"] * 2
    assert set(found.summary["methods"]) == {"my_method.make_sampler", "other.make_sampler"}


def test_closures_are_told_apart_by_what_they_hold(files, ran):
    def tpe(start):
        return lambda seed: TPESampler(seed=seed, n_startup_trials=start)

    out = files / "out"
    for start, count in ((4, 2), (4, 0), (5, 2), (4, 0)):
        ran.clear()
        compare(ONE, {"mine": tpe(start)}, **FAST, out=out)
        assert len(ran) == count, start
    # Two on one line, with nothing but their code to tell them by.
    ran.clear()
    two = {"a": lambda seed: RandomSampler(seed + 2), "b": lambda seed: RandomSampler(seed + 1)}
    found = compare(ONE, two, **FAST, out=out)
    assert len(ran) == 4
    assert steps_of(found, "a") != steps_of(found, "b")


def in_a_notebook(code: str):
    """Run cells: functions that no file has."""
    names = {"__name__": "__main__"}
    exec(textwrap.dedent(code), names)
    return names


CELLS = """
    import optuna
    START = 4
    def helper(seed):
        return seed + 1
    class Mine(optuna.samplers.TPESampler):
        LEVEL = 1
        def reseed_rng(self):
            pass
    def make_sampler(seed):
        return Mine(seed=helper(seed), n_startup_trials=START)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("START = 4", "START = 5"),
        ("seed + 1", "seed + 2"),
        ("LEVEL = 1", "LEVEL = 2"),
        ("pass", "super().reseed_rng()"),
        ("=helper(seed)", "=seed"),
    ],
)
def test_a_function_of_a_notebook_is_run_anew_with_all_that_it_uses(files, ran, old, new):
    out = files / "out"
    for code, count in ((CELLS, 2), (CELLS, 0), (CELLS.replace(old, new), 2)):
        ran.clear()
        compare(ONE, {"mine": in_a_notebook(code)["make_sampler"]}, **FAST, out=out)
        assert len(ran) == count


def test_what_cannot_be_told_apart_is_run_again_and_said_once(files, ran):
    held = object()
    out = files / "out"

    def mine(seed):
        assert held is not None
        return RandomSampler(seed=seed)

    for _ in range(2):
        ran.clear()
        with pytest.warns(
            UserWarning, match=r"runs of 'mine' are not saved.*'held'.*object"
        ) as said:
            found = compare(ONE, {"mine": mine, "random": "random"}, **FAST, out=out)
        assert len([one for one in said if "not saved" in str(one.message)]) == 1
    assert ran == ["mine on one.parquet with seed 0", "mine on one.parquet with seed 1"]
    assert len(found.steps) == 40
    compare(ONE, {"mine": mine}, **FAST)  # where nothing is kept, there is nothing to say


SCRIPT = """
    import dataclasses, enum, os, sys
    from numpy import linspace
    import optuna
    import bo_act
    from pathlib import Path

    LEVELS = linspace(0, 1, 3)
    NAMES = {"a", "b", "c"}

    class Kind(enum.Enum):
        ONE = 1

    @dataclasses.dataclass
    class Options:
        start: int = 4
        kind: Kind = Kind.ONE

    class Mine(optuna.samplers.TPESampler):
        def reseed_rng(self):
            assert self in LEVELS and NAMES & {"a", "b"}

    def make_sampler(seed):
        print("main" if __name__ == "__main__" else "worker", flush=True)
        return Mine(seed=seed, n_startup_trials=Options().start)

    if __name__ == "__main__":
        methods = {"mine": make_sampler, "random": "random"}
        bo_act.compare(
            ["one.parquet"], methods, seeds=2, evaluations=10, workers=2, out=Path("out")
        )
"""


@pytest.mark.slow
def test_a_function_of_a_program_travels_and_has_its_runs_in_the_next(files):
    def run(code: str) -> list[str]:
        write("program.py", code)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "program.py"],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    assert run(SCRIPT) == ["worker"] * 2
    assert run(SCRIPT) == []
    assert run(SCRIPT.replace("seeds=2", "seeds=4")) == ["worker"] * 2
    for old, new in (("start: int = 4", "start: int = 5"), ("ONE = 1", "ONE = 2")):
        assert len(run(SCRIPT.replace(old, new))) == 2, old


@pytest.mark.slow
def test_a_function_that_a_worker_cannot_find_is_said_to_be_one(files):
    write(
        "program.py",
        """
        import bo_act, optuna

        if __name__ == "__main__":
            def make_sampler(seed):
                return optuna.samplers.RandomSampler(seed)

            methods = {"mine": make_sampler}
            bo_act.compare(["one.parquet"], methods, evaluations=12, seeds=2, workers=2)
        """,
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py"], check=False, capture_output=True, text=True
    )
    assert (
        "function cannot be loaded in a worker: Can't get attribute 'make_sampler'" in done.stderr
    )


# --- what fails ---------------------------------------------------------------------------------


def test_a_failure_names_the_line_and_the_mended_file_goes_on(files, ran):
    write("my_method.py", FAILS)
    out = files / "out"
    methods = ["random", MINE]
    with pytest.raises(BenchmarkError) as caught:
        compare(ONE, methods, **FAST, out=out)
    said = str(caught.value)
    assert "make_sampler on one.parquet with seed 0" in said
    assert "ValueError: no more (my_method.py, line 7)" in said
    assert "\n" not in said
    write("my_method.py", textwrap.dedent(FAILS).replace("> 7", "> 70"))
    ran.clear()
    found = compare(ONE, methods, **FAST, out=out)
    assert len(found.steps) == 40
    assert "random on one.parquet with seed 0" not in ran  # measured before it failed
    assert len(ran) == 3


def test_a_failure_in_a_library_names_where_the_sampler_comes_from(files):
    write(
        "my_method.py",
        """
        from optuna.samplers import GridSampler

        def make_sampler(seed):
            return GridSampler({"learning_rate": [0.1, 0.2]}, seed=seed)
        """,
    )
    with pytest.raises(
        BenchmarkError, match=r"ValueError: .* not found .*\(my_method\.py, line 4\)"
    ):
        compare(ONE, [MINE], **FAST)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make_sampler(seed):\n    raise SystemExit(3)\n", r"SystemExit: 3 \(my_.*line 2\)"),
        ("def make_sampler(study):\n    pass\n", r"make_sampler \(my_.*line 1\) asks for study;"),
        ("import none_such\n", r"my_method\.py cannot be imported: Module.*line 1"),
        (
            "def make_sampler():\n    return 3\n",
            r"make_sampler \(my_.*line 1\) to return an Optuna",
        ),
        ("from optuna.samplers import GPSampler as make_sampler\n", None),
    ],
)
def test_files_that_make_no_sampler(files, code, message):
    write("my_method.py", code)
    if message is None:
        assert compare(ONE, [MINE], **FAST).summary["methods"]
        return
    with pytest.raises(BenchmarkError, match=message):
        compare(ONE, [MINE], **FAST)


class Stubborn(BaseSampler):
    """Proposes one thing, whatever it is told."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return param_distribution.choices[0]


def test_proposals_outside_the_space_end(files, monkeypatch):
    from bo_act.comparison import replay
    from bo_act.spaces.space import Space

    def never(self, trial, name=""):
        self._suggested(trial, name)
        raise optuna.TrialPruned

    monkeypatch.setattr(Space, "suggest_expression", never)
    monkeypatch.setattr(replay, "MOST_REFUSED", 30)
    with pytest.raises(BenchmarkError, match=r"30 proposals in a row.*test_own_sampler\.py"):
        compare(ONE, {"mine": Stubborn}, **FAST)


def test_proposals_that_are_not_measured_end(one, files, monkeypatch):
    from bo_act.benchmark.parquet import save
    from bo_act.benchmark.table import PART
    from bo_act.comparison import replay

    proposed = steps_of(compare(ONE, {"mine": Stubborn}, **FAST), "mine")[-1]
    runs = {name: values.copy() for name, values in one.runs.items()}
    for values in runs.values():
        values[proposed] = np.nan
    part = dataclasses.replace(one, name="few", runs=runs, provenance={PART: True})
    save(part, files / "few.parquet")
    monkeypatch.setattr(replay, "MOST_REFUSED", 30)
    with pytest.raises(BenchmarkError, match=r"30 proposals in a row.*not measured in 'few'"):
        compare(["few.parquet"], {"mine": Stubborn}, **FAST)


def test_a_sampler_that_repeats_itself_is_measured(files):
    found = compare(ONE, {"mine": Stubborn}, **FAST)
    assert len(set(steps_of(found, "mine")[-3:])) == 1
    assert np.isfinite(found.table["area"]).all()


# --- plans, commands, figures, reports ----------------------------------------------------------


def test_a_plan_names_files(files):
    write("my_method.py", TPE)
    plan = write(
        "plan.toml",
        """
        benchmarks = ["one.parquet"]
        methods = ["random", "my_method.py:make_sampler", "again=my_method.py:make_sampler"]
        evaluations = 8
        seeds = 1
        """,
    )
    found = compare(ONE, read_plan(plan, {}).chosen(), seeds=1, evaluations=8)
    assert list(found.summary["methods"]) == ["random", "make_sampler", "again"]
    plan.write_text('methods = ["mine=my_method.py:make_sampler"]\n[method.mine]\nfim = false\n')
    with pytest.raises(BenchmarkError, match=r"two methods are named 'mine'"):
        compare(ONE, read_plan(plan, {}).chosen())


def test_on_the_command_line(bo_act, files):
    write("my_method.py", TPE)
    options = ["--benchmark", "one.parquet", "--method", MINE, "--method", f"[b]x={MINE}"]
    options += ["--method", "random", "--evaluations", "8", "--seeds", "2", "--out", "out"]
    code, out, err = bo_act("compare", *options, "--report", "page.html")
    assert code == 0, err
    for name in ("make_sampler", "[b]x", "random"):
        assert out.count(name) == 2, name  # in the table, and beside the probabilities
        assert name in Path("page.html").read_text()
    assert "make_sampler" in Path("out/regret.svg").read_text().replace("\n", "")
    summary = json.loads(Path("out/summary.json").read_text())
    assert list(summary["methods"]) == ["make_sampler", "[b]x", "random"]
    write("my_method.py", FAILS)
    code, _, err = bo_act("compare", *options)
    assert code == 2
    assert err.count("error:") == 1
    assert "(my_method.py, line 7)" in err.splitlines()[-1]


def test_figures_name_it(files):
    found = compare(ONE, {"mine": make_sampler, "random": "random"}, **FAST)
    for figure in found.figures().values():
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "random"]
    assert "mine" in found._repr_html_()
    assert set(found.table["method"]) == {"mine", "random"}


def test_the_example_runs(files):
    runner = doctest.DocTestRunner(verbose=False)
    for example in doctest.DocTestFinder().find(compare, "compare"):
        runner.run(example)
    assert runner.summarize(verbose=False) == (0, 4)

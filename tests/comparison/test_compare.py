"""Comparisons: paired, resumable, complete; with warm starts, figures and commands."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import surrogate_quality as quality
import torch
from benchmarks_of_tests import random_benchmark
from processes import environment
from scipy import stats

from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.benchmark.table import Benchmark
from bo_act.comparison import compare as comparing
from bo_act.comparison import figures
from bo_act.comparison.compare import Comparison, compare, load_comparison
from bo_act.comparison.figures import regret_curves
from bo_act.comparison.job import embed
from bo_act.comparison.metrics import progress, summary, table
from bo_act.comparison.plan import read_plan
from bo_act.comparison.replay import initial_design
from bo_act.errors import BenchmarkError, SpecError
from bo_act.search.method import METHODS, MethodSpec
from bo_act.search.observations import warp_targets
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.terminal.benchmarks import comparison

FAST = ("random", "evolution", "optuna_random")


NAMES = ("one.parquet", "two.parquet")


def without_times(steps: pd.DataFrame) -> pd.DataFrame:
    return steps.drop(columns="suggest_seconds")


def test_every_method_starts_from_the_same_functions(files, one):
    found = compare(NAMES, FAST, evaluations=14, seeds=3)
    assert len(found.steps) == 2 * 3 * 3 * 14
    assert list(found.steps.columns) == [
        *("benchmark", "method", "seed", "evaluation", "index", "activation", "value", "test"),
        *("suggest_seconds", "pruned", "train_seconds"),
    ]
    for (name, seed), rows in found.steps.groupby(["benchmark", "seed"]):
        design = initial_design(open_benchmark(name), seed=seed)
        for _, run in rows.groupby("method"):
            assert run["index"].tolist()[: len(design)] == design
    assert set(found.summary["methods"]) == set(FAST)
    assert set(found.summary["methods"]["random"]["benchmarks"]) == set(NAMES)
    assert len(found.table) == 6


def test_workers_change_nothing(files):
    methods = ("random", "default")
    alone = compare(NAMES[:1], methods, evaluations=12, seeds=2)
    shared = compare(NAMES[:1], methods, evaluations=12, seeds=2, workers=2)
    pd.testing.assert_frame_equal(without_times(alone.steps), without_times(shared.steps))


def test_what_is_there_is_not_run_again(files, monkeypatch):
    out = files / "out"
    first = compare(NAMES[:1], FAST[:2], evaluations=12, seeds=2, out=out)
    ran: list[str] = []
    replayed = comparing._replayed
    monkeypatch.setattr(
        comparing,
        "_replayed",
        lambda job, runs, workers: (ran.extend(map(str, runs)), replayed(job, runs, workers))[1],
    )
    again = compare(NAMES[:1], FAST[:2], evaluations=12, seeds=2, out=out)
    assert ran == []
    pd.testing.assert_frame_equal(first.steps, again.steps)
    more = compare(NAMES, FAST, evaluations=12, seeds=3, out=out)
    assert len(ran) == 2 * 3 * 3 - 4
    pd.testing.assert_frame_equal(
        without_times(more.steps),
        without_times(compare(NAMES, FAST, evaluations=12, seeds=3).steps),
    )
    # The same name for another method is another method, and another name for one is none.
    mine = [("mine", MethodSpec(acquisition=AcquisitionSpec(name="greedy")))]
    ran.clear()
    compare(NAMES[:1], mine, evaluations=12, seeds=1, out=out)
    assert len(ran) == 1
    renamed = compare(NAMES[:1], [("mine", METHODS["random"])], evaluations=12, seeds=1, out=out)
    assert len(ran) == 1
    assert set(renamed.steps["method"]) == {"mine"}


def test_runs_of_other_code_or_options_are_refused(files, monkeypatch):
    out = files / "out"
    compare(NAMES[:1], FAST[:1], evaluations=12, seeds=1, out=out)
    with pytest.raises(BenchmarkError, match="evaluations"):
        compare(NAMES[:1], FAST[:1], evaluations=13, seeds=1, out=out)
    monkeypatch.setattr(comparing, "code_digest", lambda: "another")
    with pytest.raises(BenchmarkError, match="code"):
        compare(NAMES[:1], FAST[:1], evaluations=12, seeds=1, out=out)


@pytest.mark.slow
def test_a_killed_comparison_goes_on(files):
    """Killed three times, it ends with the steps of one that was let run."""
    script = (
        "from pathlib import Path\n"
        "from bo_act.comparison.compare import compare\n"
        f"compare({NAMES!r}, {FAST!r}, evaluations=14, seeds=40, out=Path('out'))\n"
    )
    journal = files / "out" / "runs.jsonl"
    for kills in range(3):
        before = journal.stat().st_size if journal.exists() else 0
        child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.stat().st_size < before + 20_000:
            assert child.poll() is None, f"ended before kill {kills}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    lines = journal.read_text().count("\n")
    assert 3 < lines < 240
    resumed = compare(NAMES, FAST, evaluations=14, seeds=40, out=files / "out")
    undisturbed = compare(NAMES, FAST, evaluations=14, seeds=40)
    pd.testing.assert_frame_equal(without_times(resumed.steps), without_times(undisturbed.steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmarks": []}, "at least one benchmark"),
        ({"methods": []}, "at least one method of: default"),
        ({"methods": ["defualt"]}, r"no method named 'defualt'.*default"),
        ({"seeds": 0}, "seeds: expected a whole number from 1"),
        ({"at": 13, "evaluations": 12}, "at: expected a whole number from 1 to 12"),
        ({"at": 0}, "at: expected a whole number from 1"),
        ({"first_seed": -1}, "first_seed: expected a whole number from 0"),
        ({"first_seed": 2**32, "seeds": 1}, "first_seed: expected"),
        ({"warm_start": ["one.parquet"]}, "benchmarks of other tasks to learn from"),
    ],
)
def test_bad_arguments(files, options, message):
    arguments = {"benchmarks": NAMES[:1], "methods": FAST[:1]} | options
    benchmarks, methods = arguments.pop("benchmarks"), arguments.pop("methods")
    with pytest.raises(BenchmarkError, match=message):
        compare(benchmarks, methods, **arguments)


def test_methods_are_compared_where_it_is_asked(files):
    found = compare(NAMES, FAST, evaluations=14, seeds=3, at=5, out=files / "out")
    assert found.summary["compared_at"] == 5
    runs = progress(found.steps, found.benchmarks)
    one, other = (
        np.concatenate([runs[name, method].regret[:, 4] for name in NAMES]) for method in FAST[:2]
    )
    wins = (one < other).mean() + (one == other).mean() / 2
    pair = found.summary["comparisons"][0]
    assert pair["probability"] == pytest.approx(wins)
    row = found.table.iloc[0]
    figures_of = found.summary["methods"][row["method"]]["benchmarks"][row["benchmark"]]
    assert row["median rank"] == figures_of["median_rank"]["5"]
    assert {"regret 5", "regret 10", "regret 14"} <= set(found.table.columns)
    # The searches are those of a comparison in the end, and the folder says where it was.
    found.save(files / "out")
    assert load_comparison(files / "out").summary == found.summary
    last = compare(NAMES, FAST, evaluations=14, seeds=3, out=files / "out")
    pd.testing.assert_frame_equal(last.steps, found.steps)
    assert last.summary["compared_at"] == 14


def test_what_was_luck_of_one_run_is_judged_by_the_others(files, one):
    """A search is told one run of each function; what it recommends is judged by the rest."""
    found = compare(NAMES[:1], FAST[:2], evaluations=12, seeds=3, told="run", out=files / "out")
    steps = found.steps
    runs = progress(steps, found.benchmarks)
    for (method, seed), rows in steps.groupby(["method", "seed"]):
        told, (judging,) = seed % one.seeds, {0, 1} - {seed % one.seeds}
        assert set(rows["told_run"]) == {told}
        seen = [one.runs["validation_value"][i, told] for i in rows["index"]]
        known = np.isfinite(seen)
        np.testing.assert_allclose(rows["value"].to_numpy()[known], np.array(seen)[known], 1e-6)
        best = rows["index"].to_numpy()[rows["value"].to_numpy().argmax()]
        for metric, regret in (("validation", "regret"), ("test", "test_regret")):
            others = one.runs[f"{metric}_value"][:, judging]
            expected = np.nanmax(others) - others[best]
            place = runs[NAMES[0], method].seeds.tolist().index(seed)
            got = getattr(runs[NAMES[0], method], regret)[place, -1]
            assert got == pytest.approx(expected)
    assert found.summary["searches_were_told"] == "run"
    found.save(files / "out")
    assert load_comparison(files / "out").summary == found.summary
    assert set(found.figures()) == {"regret", "ranks", "suggestion_times"}
    with pytest.raises(BenchmarkError, match="told"):
        compare(NAMES[:1], FAST[:2], evaluations=12, seeds=3, out=files / "out")
    with pytest.raises(BenchmarkError, match="told: expected 'mean' or 'run', got 'luck'"):
        compare(NAMES[:1], FAST[:2], told="luck")


def test_one_run_cannot_be_judged_by_others(files, one):
    save(one.of_runs([0]), files / "single.parquet")
    with pytest.raises(BenchmarkError, match=r"one run in 'single\.parquet'"):
        compare(["single.parquet"], FAST[:1], evaluations=12, seeds=1, told="run")


def test_seeds_from_another_start_are_those_of_longer_comparisons(files):
    found = compare(NAMES[:1], FAST[:2], evaluations=12, seeds=2, first_seed=3)
    longer = compare(NAMES[:1], FAST[:2], evaluations=12, seeds=5)
    later = longer.steps[longer.steps["seed"] >= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(without_times(found.steps), without_times(later))


# --- plans ----------------------------------------------------------------------------------


def test_a_plan_from_a_file_and_from_options(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        'benchmarks = ["a"]\nmethods = ["random", "mine"]\nseeds = 3\nwarm_start = ["b"]\n'
        "[method.mine]\nacquisition = { name = 'greedy' }\n"
        "[method.other]\noptuna = 'tpe'\n"
    )
    plan = read_plan(path, {"seeds": 7, "benchmarks": ["c", "d"]})
    assert (plan.first_seed, plan.at) == (0, None)
    assert (plan.seeds, plan.benchmarks, plan.warm_start) == (7, ("c", "d"), ("b",))
    names = [m if isinstance(m, str) else m[0] for m in plan.chosen()]
    assert names == ["random", "mine", "other"]
    assert plan.chosen()[1][1].acquisition.name == "greedy"
    path.write_text("[method.random]\nfim = false\n")
    with pytest.raises(SpecError, match=r"method\.random: a built-in method has that name"):
        read_plan(path, {})
    path.write_text("seed = 3\n")
    with pytest.raises(SpecError, match=r"unknown key 'seed'.*seeds"):
        read_plan(path, {})


# --- surrogates -----------------------------------------------------------------------------


def smooth(benchmark: Benchmark, noise: float) -> tuple[Benchmark, object]:
    """Values that follow from the embedding."""
    embedding = embed(benchmark, METHODS["default"])
    points = np.where(embedding.valid[:, None], embedding.points, 0.5)
    value = np.sin(3 * points[:, 0]) + points[:, 1]
    value += np.random.default_rng(0).normal(0, noise, len(value))
    runs = {metric: value[:, None].copy() for metric in benchmark.runs}
    changed = dataclasses.replace(
        benchmark, runs=runs, diverged=np.zeros((len(value), 1), bool), curves=None
    )
    return changed, embedding


@pytest.fixture(scope="module")
def larger(act_bench) -> Benchmark:
    return random_benchmark(act_bench, runs=1)


def test_quality_of_surrogates_that_see_something_and_nothing(larger):
    known, embedding = smooth(larger, 0.05)
    for name in ("gp", "forest", "knn"):
        good = quality.surrogate_quality(known, embedding, SurrogateSpec(name=name), seeds=3)
        assert good["tau"]["mean"] > 0.3, name
        assert good["tau_top"]["mean"] > 0.1, name
    blind = quality.surrogate_quality(larger, embedding, SurrogateSpec(), seeds=3)
    assert abs(blind["tau"]["mean"]) < 0.1


def test_coverage_of_a_gaussian_process_whose_assumptions_hold(larger):
    known, embedding = smooth(larger, 0.3)
    spec = SurrogateSpec(targets="standardized")
    found = quality.surrogate_quality(known, embedding, spec, observations=80, seeds=4)
    for level, share in found["coverage"].items():
        assert abs(share["mean"] - float(level)) < 0.1, (level, share)
    json.dumps(found, allow_nan=False)
    with pytest.raises(BenchmarkError, match=r"got .* and 1"):
        quality.surrogate_quality(known, embedding, spec, observations=1)


def test_quality_after_searches(larger):
    known, embedding = smooth(larger, 0.3)
    spec = SurrogateSpec(targets="standardized")
    usable = np.flatnonzero(embedding.valid & known.measured)
    drawn = [np.random.default_rng(seed).permutation(usable).tolist() for seed in range(3)]
    # Of longer searches the beginning counts.
    after = quality.surrogate_quality(known, embedding, spec, observations=40, searched=drawn)
    assert after == quality.surrogate_quality(known, embedding, spec, observations=40, seeds=3)
    # A search that saw the worse half alone says nothing of the best fifth.
    order = usable[np.argsort(known.values[usable])].tolist()
    worst = [order[len(order) // 2], *order]
    blind = quality.surrogate_quality(known, embedding, spec, observations=40, searched=[worst])
    assert blind["seeds"] == 1
    assert set(blind["coverage"]) == {"0.5", "0.8", "0.95"}
    assert blind["coverage_top"] == {}
    with pytest.raises(BenchmarkError, match="at least 50 evaluations, got one of 3"):
        quality.surrogate_quality(
            known, embedding, spec, observations=50, searched=[worst, worst[:3]]
        )


def test_coverage_of_the_best_is_counted_among_them_alone(larger, monkeypatch):
    known, embedding = smooth(larger, 0.3)
    usable = np.flatnonzero(embedding.valid & known.measured)
    seen = usable[np.argsort(known.values[usable])][[0, 1, -1]]  # the whole range

    class Flat:
        """Predicts the value of the best of all, and is sure of it."""

        noise = torch.tensor(1e-2)

        def mean_and_variance(self, points):
            return torch.full((len(points),), top), torch.zeros(len(points))

    top = warp_targets(known.values[seen], "standardized").max()
    monkeypatch.setattr(
        quality,
        "fit_points",
        lambda _, x, values, *__, **___: (
            Flat(),
            torch.from_numpy(warp_targets(values, "standardized")),
            "",
        ),
    )
    found = quality.surrogate_quality(
        known,
        embedding,
        SurrogateSpec(targets="standardized"),
        observations=3,
        searched=[seen.tolist()],
    )
    truth = np.sort(known.values[np.setdiff1d(usable, seen)])[::-1]
    best = truth[: len(truth) // 5]
    deviation = known.values[seen].std()
    within = known.values[seen].max() - best <= stats.norm.ppf(0.9) * 0.1 * deviation
    assert found["coverage_top"]["0.8"]["mean"] == pytest.approx(within.mean())
    assert found["coverage"]["0.8"]["mean"] == pytest.approx(within.sum() / len(truth))


# --- figures --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "in_a_row"), [(4, 4), (5, 3), (8, 4)])
def test_many_benchmarks_stand_in_rows(one, count, in_a_row):
    rows = {"method": "a", "seed": 0, "evaluation": range(6), "index": 0, "pruned": False}
    rows |= {"value": one.values[0], "suggest_seconds": 0.0}
    names = [f"b{number}" for number in range(count)]
    steps = pd.concat([pd.DataFrame(rows | {"benchmark": name}) for name in names])
    drawn = regret_curves(steps, dict.fromkeys(names, one)).axes
    assert [axes.get_title() for axes in drawn] == names
    assert [axes.get_subplotspec().colspan.start for axes in drawn] == [
        number % in_a_row for number in range(count)
    ]
    assert [bool(axes.get_ylabel()) for axes in drawn] == [n % in_a_row == 0 for n in range(count)]


def test_figures_show_every_method(files):
    found = compare(NAMES, FAST, evaluations=12, seeds=3)
    drawn = found.figures()
    assert set(drawn) == {"regret", "ranks", "suggestion_times"}
    left, right = drawn["regret"].axes
    assert [axes.get_title() for axes in (left, right)] == list(NAMES)
    runs = progress(found.steps, found.benchmarks)
    for axes, name in ((left, NAMES[0]), (right, NAMES[1])):
        assert axes.get_yscale() == "log"
        assert [line.get_label() for line in axes.lines] == list(FAST)
        for line, method in zip(axes.lines, FAST, strict=True):
            mean = runs[name, method].normalized.mean(axis=0)
            positive = mean > 0
            np.testing.assert_allclose(np.asarray(line.get_ydata())[positive], mean[positive])
    (ranks,) = drawn["ranks"].axes
    total = sum(np.asarray(line.get_ydata()) for line in ranks.lines)
    np.testing.assert_allclose(total, 6)  # 1 + 2 + 3
    (times,) = drawn["suggestion_times"].axes
    assert times.get_yscale() == "log"
    written = found.save(files / "out")
    assert {path.name for path in written} == {
        *("steps.parquet", "summary.json"),
        *(f"{stem}.{kind}" for stem in drawn for kind in ("png", "svg")),
    }
    first = {path.name: path.read_bytes() for path in written}
    assert first["regret.png"].startswith(b"\x89PNG")
    assert first["regret.svg"].lstrip().startswith(b"<?xml")
    assert {path.name: path.read_bytes() for path in found.save(files / "out")} == first
    pd.testing.assert_frame_equal(pd.read_parquet(files / "out" / "steps.parquet"), found.steps)
    assert json.loads(first["summary.json"]) == found.summary


def test_methods_beyond_the_colours_have_other_strokes():
    styles = figures._styles([str(number) for number in range(14)])
    assert len({(s["color"], str(s["linestyle"])) for s in styles.values()}) == 14


# --- commands -------------------------------------------------------------------------------


def test_libraries_warn_of_nothing_in_workers(files, monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    command = [sys.executable, "-m", "bo_act.cli", "compare", "--benchmark", "one.parquet"]
    command += ["--method", "random", "--evaluations", "6", "--seeds", "2", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr


def test_compare_as_a_command(bo_act, files):
    options = [o for name in NAMES for o in ("--benchmark", name)]
    options += [o for name in FAST for o in ("--method", name)]
    options += ["--evaluations", "12", "--seeds", "2", "--first-seed", "4", "--at", "11"]
    options += ["--out", "out"]
    code, out, err = bo_act("compare", *options, "--json")
    assert code == 0, err
    summary = json.loads(out)
    figures_of = summary["methods"]["random"]["benchmarks"]["two.parquet"]
    assert set(figures_of) >= {
        *("regret", "ci95", "median_rank", "test_regret", "evaluations_to_top_1pct"),
        "suggest_seconds",
    }
    assert "out/regret.svg" in err
    assert set(pd.read_parquet("out/steps.parquet")["seed"]) == {4, 5}
    code, out, err = bo_act("compare", *options)
    assert code == 0
    for name in (*FAST, *NAMES):
        assert name in out
    assert "beats each method after 11 evaluations" in " ".join(out.split())
    code, out, err = bo_act("compare", *options[:-2], "--told", "run")
    assert code == 0, err
    assert "The mean of the other runs judges" in " ".join(out.split())
    code, out, err = bo_act("compare", *options)
    assert "Holm-adjusted for 2" in " ".join(out.split())
    code, _, err = bo_act("compare", "--benchmark", "none")
    assert code != 0
    assert "no benchmark named 'none'" in err


def test_compare_writes_a_report_of_what_it_found(bo_act, files):
    options = ["--benchmark", "one.parquet", "--method", "random", "--method", "evolution"]
    options += ["--evaluations", "10", "--seeds", "2", "--json"]
    code, out, err = bo_act("compare", *options, "--report", "seen/both.html")
    assert code == 0, err
    assert "wrote seen/both.html" in err
    assert set(json.loads(out)["methods"]) == {"random", "evolution"}
    page = (files / "seen" / "both.html").read_text(encoding="utf-8")
    assert "<h1>comparison</h1>" in page
    assert '<td class="">evolution</td>' in page
    code, _, err = bo_act("compare", *options, "--report", "again.html", "--out", "runs.v2")
    assert code == 0, err
    assert "<h1>runs.v2</h1>" in (files / "again.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_made_is_noticed_before_the_comparison(bo_act, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, _, err = bo_act("compare", "--benchmark", "one.parquet", "--out", "o", "--report", "r")
    assert code == 2
    assert "pip install 'bo-act[report]'" in err
    assert not (files / "o").exists()


def test_a_search_is_no_longer_than_the_space(files):
    with pytest.raises(BenchmarkError, match=r"only 33 measured .* 34 evaluations; evaluate fewer"):
        compare(["one.parquet"], ["default"], evaluations=34, seeds=1)


def test_an_interval_of_one_benchmark_is_of_it_alone(one, capsys):
    rows = {"seed": 0, "evaluation": range(4), "index": 0, "value": one.values[0], "test": 0.1}
    rows |= {"suggest_seconds": np.nan, "pruned": False}
    names = ("one", "other")
    steps = pd.concat(
        [pd.DataFrame(rows | {"benchmark": n, "method": m}) for n in names for m in "ab"]
    )
    for some, said in (
        (names[:1], "95% interval of this benchmark alone"),
        (names, "similar benchmarks"),
    ):
        benchmarks = dict.fromkeys(some, one)
        part = steps[steps["benchmark"].isin(some)]
        found = Comparison(part, benchmarks, summary(part, benchmarks))
        comparison(found)
        assert said in " ".join(capsys.readouterr().out.split())
        # Searches that end with the given start suggest nothing.
        assert found.table["seconds"].isna().all()
        found.figures()["suggestion_times"].canvas.draw()


@pytest.mark.parametrize("evaluations", [20, 50, 60])
def test_no_column_of_the_documented_table_stands_there_twice(one, monkeypatch, evaluations):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from standing import markdown

    rows = {"seed": 0, "evaluation": range(evaluations), "index": 0, "value": one.values[0]}
    rows |= {"benchmark": "one", "suggest_seconds": 0.0, "pruned": False}
    steps = pd.concat([pd.DataFrame(rows | {"method": name}) for name in ("a", "b")])
    summed = summary(steps, {"one": one})
    frame = table(summed)
    written = markdown(frame, summed["comparisons"])
    short, long = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in re.findall(r"(?:^\|.*\n)+", written, flags=re.MULTILINE)
    )
    for lines in (short, long):
        assert {len(line) for line in lines} == {len(set(lines[0]))}
    wanted = sorted({n for n in (5, 10, 20, 30, 50) if n <= evaluations} | {evaluations})
    assert [c for c in long[0] if c.startswith("regret ")] == [f"regret {n}" for n in wanted]
    assert short[0] == ["benchmark", "`a`", "`b`"]
    shown = [f"{frame[f'regret {n}'][0]:.2g}" for n in wanted if n in (evaluations, 20)]
    assert short[2][:2] == ["one", ", ".join(shown)]
    assert short[3] == ["P(`a` beats it)", "", "0.50 [0.00, 1.00], 0/1, 1"]


def test_build_as_a_command(bo_act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(
        'name = "few"\nexpressions = ["relu(x)", "tanh(x)"]\nbaselines = ["relu(x)"]\n'
    )
    options = ["--set", "space=few.toml", "--set", "training.epochs=1", "--set", "data.train=100"]
    options += ["--set", "features.fim=false", "--seeds", "2", "--folder", "built"]
    code, out, err = bo_act("bench", "build", "quickstart", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["runs"] == 2 * json.loads(out)["functions"]
    assert "runs: " in err
    built = tmp_path / "built"
    first = (built / "quickstart.parquet").read_bytes()
    (built / "quickstart.parquet").unlink()
    code, out, err = bo_act("bench", "build", "quickstart", *options)
    assert code == 0
    assert "wrote built/quickstart.parquet" in err
    assert (built / "quickstart.parquet").read_bytes() == first
    assert (built / "quickstart.json.gz").is_file()
    code, _, err = bo_act("bench", "build", "quickstart", *options, "--set", "training.epochs=2")
    assert code != 0
    assert "built" in err


def test_show_as_a_command(bo_act, files):
    code, out, _ = bo_act("bench", "show", "one.parquet", "--json", "--top", "3")
    content = json.loads(out)
    assert code == 0
    assert len(content["best"]) == 3
    assert content["measured"] == content["functions"] - 1
    assert content["luck"]["runs"] == 2
    code, out, _ = bo_act("bench", "show", "one.parquet")
    assert code == 0
    assert "Selection bias of the best" in out
    assert content["best"][0]["activation"] in out
    code, _, err = bo_act("bench", "show", "nothing.json")
    assert code != 0
    assert "no benchmark file 'nothing.json'" in err
    code, _, err = bo_act("bench", "fetch", "nothing.json")
    assert code != 0
    assert "act-bench on GitHub" in err

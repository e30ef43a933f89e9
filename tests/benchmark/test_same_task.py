"""A source is known by what it holds: no search is told by the very task that it searches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from benchmarks_of_tests import random_benchmark

from bo_act.benchmark.sources import as_source, same_runs, same_task
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.compare import compare
from bo_act.errors import BenchmarkError, SearchError
from bo_act.metrics import Metric
from bo_act.search.warm_start import Source, make_warm_start
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec, StudySpec
from bo_act.study.running.runner import run_study
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.sampling.warm_start import read_sources
from bo_act.study.storage.opening import open_storage

OURS = "one.parquet"


def changed(benchmark: Benchmark, **changes: object) -> Benchmark:
    return dataclasses.replace(benchmark, **{"curves": None} | changes)


def seeds_of(benchmark: Benchmark, some: slice) -> Benchmark:
    runs = {metric: values[:, some] for metric, values in benchmark.runs.items()}
    return changed(benchmark, runs=runs, diverged=benchmark.diverged[:, some])


def more_seeds(benchmark: Benchmark) -> Benchmark:
    other = random_benchmark(benchmark.space, runs=3, seed=9)
    runs = {m: np.hstack([benchmark.runs[m], other.runs[m]]) for m in benchmark.runs}
    return changed(benchmark, runs=runs, diverged=np.hstack([benchmark.diverged, other.diverged]))


def of_fewer_functions(benchmark: Benchmark) -> Benchmark:
    texts = [benchmark.space.catalogue.text(index) for index in range(20)]
    space = Space(SpaceSpec(name="fewer", expressions=tuple(texts)))
    places = [benchmark.space.catalogue.index(text) for text in texts]
    here = random_benchmark(space)
    order = [space.catalogue.index(text) for text in texts]
    runs = {metric: values.copy() for metric, values in here.runs.items()}
    for metric, values in runs.items():
        values[order] = benchmark.runs[metric][places]
    return changed(here, runs=runs)


def half_anew(benchmark: Benchmark) -> Benchmark:
    """A third of the functions measured again."""
    other = random_benchmark(benchmark.space, seed=9)
    again = np.arange(len(benchmark)) % 3 == 0
    runs = {m: np.where(again[:, None], other.runs[m], v) for m, v in benchmark.runs.items()}
    return changed(benchmark, runs=runs)


SPELLINGS = {
    "relative": lambda file: f"./{file.name}",
    "roundabout": lambda file: f"../{file.parent.name}/{file.name}",
    "absolute": str,
    "link": lambda file: (file.with_name("link.parquet").symlink_to(file), "link.parquet")[1],
    "copy": lambda file: (
        file.with_name("copy.parquet").write_bytes(file.read_bytes()),
        "copy.parquet",
    )[1],
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_no_search_is_told_by_its_own_benchmark_under_another_name(files, spelling):
    again = spelling(files / OURS)
    options = {"evaluations": 1, "seeds": 1}
    told = compare([OURS], ["default"], warm_start=[again, "two.parquet"], **options)
    alone = compare([OURS], ["default"], warm_start=["two.parquet"], **options)
    assert told.steps["index"].tolist() == alone.steps["index"].tolist()
    assert told.summary["told"] == {OURS: {"by": ["two.parquet"], "not_by": [again]}}
    with pytest.raises(BenchmarkError, match="benchmarks of other tasks to learn from"):
        compare([OURS], ["default"], warm_start=[again], **options)
    with pytest.raises(BenchmarkError, match="have the same runs, which would count twice"):
        compare([OURS, again], ["default"], **options)


def test_what_a_comparison_says_of_its_sources(files, bo_act):
    SPELLINGS["copy"](files / OURS)
    asked = ["compare", "-b", OURS, "-m", "random", "--evaluations", "12", "--seeds", "1"]
    asked += ["--warm-start", "copy.parquet", "--warm-start", "two.parquet"]
    code, out, _ = bo_act(*asked)
    assert code == 0
    assert "one.parquet was warm-started from two.parquet; not from copy.parquet" in " ".join(
        out.split()
    )
    code, out, _ = bo_act(*asked, "--json")
    assert json.loads(out)["told"][OURS]["by"] == ["two.parquet"]
    code, _, err = bo_act("compare", "-b", OURS, "--warm-start", "copy.parquet")
    assert code == 2
    assert "the same task as" in " ".join(err.split())


@pytest.mark.parametrize("described", [True, False])
def test_the_same_trainings_measured_otherwise_are_the_same_task(one, described):
    """Their accuracies and their losses, by the study or, without one, by the runs."""
    study = {"model": {"name": "mlp"}, "training": {"epochs": 3}, "seed": 0}
    runs = {m: 3 - v if m.endswith("value") else v for m, v in one.runs.items()}
    made = {"content": {"the data": "d"}, "study": study} if described else {}
    metric = Metric("log loss", "minimize", "nats")
    otherwise = dict(made)
    if described:
        otherwise["study"] = study | {"seed": 1, "metric": {"name": "log_loss"}}
        runs |= {m: v + 1 for m, v in runs.items() if m.endswith("loss")}
    first = changed(one, provenance=made)
    second = changed(one, runs=runs, chance=2.9, metric=metric, provenance=otherwise)
    assert same_task(first, second)
    assert same_task(second, first)
    other = random_benchmark(one.space, seed=9)
    assert not same_task(first, changed(other, metric=metric))


def test_leaving_one_out_goes_by_content(files):
    paths = [str(files / OURS), str(files / "two.parquet")]
    names = [OURS, "two.parquet"]
    options = {"evaluations": 7, "seeds": 1}
    told = compare(names, ["default"], warm_start=paths, **options)
    plain = compare(names, ["default"], warm_start=names, **options)
    assert told.steps["index"].tolist() == plain.steps["index"].tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda b: seeds_of(b, slice(0, 1)),
        lambda b: seeds_of(b, slice(1, 2)),
        more_seeds,
        of_fewer_functions,
        half_anew,
        lambda b: changed(b, name="another", chance=0.2),
        lambda b: changed(
            b, runs={m: v.astype(np.float32).astype(float) for m, v in b.runs.items()}
        ),
        lambda b: changed(b, runs=b.runs | {"validation_loss": np.full((len(b), 2), np.nan)}),
    ],
)
def test_the_same_runs_in_another_form(one, change):
    other = change(one)
    assert same_runs(one, other)
    assert same_runs(other, one)


@pytest.mark.parametrize("runs", [2, 3])
def test_medians_are_of_the_same_runs(one, runs):
    """As files in the form of Act-Bench have them; of an even number the median is none of them."""
    benchmark = random_benchmark(one.space, runs=runs, seed=runs)
    medians = {m: np.median(v, axis=1, keepdims=True) for m, v in benchmark.runs.items()}
    released = changed(benchmark, runs=medians, diverged=benchmark.diverged[:, :1])
    assert same_runs(benchmark, released)
    assert not same_runs(random_benchmark(one.space, runs=runs), released)


@pytest.mark.parametrize("losses", [True, False])
def test_tasks_that_are_alike_are_not_the_same(one, losses):
    """More than half of the functions at chance, and accuracies of few digits."""

    def task(seed: int) -> Benchmark:
        generator = np.random.default_rng(seed)
        runs = {}
        for metric in one.runs:
            values = generator.uniform(size=one.diverged.shape)
            if metric.endswith("value"):
                values = np.round(0.9 + 0.03 * values, 2)
                values[: len(one) * 3 // 5] = 0.1
            elif not losses:
                values[:] = np.nan
            runs[metric] = values
        return changed(one, runs=runs)

    assert same_task(task(1), task(1))
    assert not same_task(task(1), task(2))


def test_another_seed_of_the_study_is_the_same_task(one):
    def built(seed: int, epochs: int) -> Benchmark:
        study = {"seed": seed, "training": {"epochs": epochs}}
        made = {"source": "built", "content": {"the data": "d", "the space's functions": str(seed)}}
        benchmark = random_benchmark(one.space, seed=seed)
        return changed(benchmark, provenance=made | {"study": study})

    assert not same_runs(built(1, 5), built(2, 5))
    assert same_task(built(1, 5), built(2, 5))
    assert not same_task(built(1, 5), built(2, 6))


# --- sources of a study ---------------------------------------------------------------------


def test_a_source_under_several_names_counts_once(files, one):
    names = [OURS, *(spelling(files / OURS) for spelling in SPELLINGS.values()), "two.parquet"]
    space = load_space("classic")
    assert [source.name for source in read_sources(space, names)] == ["one", "two"]
    source, part = as_source(one, space), as_source(one, space).values.copy()
    part[10:] = np.nan
    given = [Source("part", part), source, Source("again", source.values), OURS]
    sampler = ActivationSampler(space, warm_start=given)
    assert (
        sampler.embedding.points.shape[1]
        == ActivationSampler(space, warm_start=[source]).embedding.points.shape[1]
    )


def test_a_source_of_another_space_is_refused(one):
    embedding = ActivationSampler(one.space).embedding
    with pytest.raises(SearchError, match=r"the source 'a' for each of 34 .* shape \(3,\)"):
        make_warm_start([Source("a", np.ones(3))], embedding)


STUDY = {
    "name": "mine",
    "space": "classic",
    "trials": 2,
    "model": {"name": "mlp", "options": {"widths": [4]}},
    "data": {"name": "digits", "train": 64, "validation": 64},
    "training": {"epochs": 1, "batch_size": 64, "threads": 1, "device": "cpu"},
    "features": {"fim": False},
    "confirm": {"seeds": 0},
}
FILE = """
name = "{}"
space = "classic"
storage = "{}"
model = {{ name = "mlp" }}
data = {{ name = "digits" }}
"""


def test_no_study_is_its_own_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Before its first trial as well, when it has nothing to say yet.
    Path("own.toml").write_text(FILE.format("mine", "sqlite:///runs/mine/study.db"))
    own = StudySpec.model_validate(STUDY | {"warm_start": {"sources": ["own.toml"]}})
    with pytest.raises(SearchError, match=r"own\.toml. is the study 'mine' itself"):
        run_study(own)
    run_study(StudySpec.model_validate(STUDY))
    where = tmp_path / "runs" / "mine" / "study.db"
    Path("roundabout.toml").write_text(FILE.format("mine", f"sqlite:///{where}"))
    optuna.copy_study(
        from_study_name="mine",
        from_storage=open_storage(str(where)),
        to_storage=open_storage("copy.log"),
        to_study_name="copied",
    )
    Path("copied.toml").write_text(FILE.format("copied", "copy.log"))
    space = load_space("classic")
    for name in ("roundabout.toml", "copied.toml"):
        sampler = ActivationSampler(space, warm_start=[name])
        study = optuna.load_study(
            study_name="mine", storage=open_storage(str(where)), sampler=sampler
        )
        with pytest.raises(SearchError, match=f"'{name}' is the study 'mine' itself"):
            study.optimize(lambda trial: len(str(space.suggest(trial).expression)), n_trials=1)
    # One and the same as two sources counts once, and another study may learn from it.
    sources = read_sources(space, ["roundabout.toml", "copied.toml"])
    assert [source.name for source in sources] == ["mine"]
    other = StudySpec.model_validate(
        STUDY | {"name": "other", "warm_start": {"sources": ["copied.toml"]}}
    )
    assert run_study(other).trials.complete == 2

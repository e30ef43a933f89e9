"""Commands that build, show and download benchmarks, and compare search methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bo_act.cli.options import Json, Panel, Quiet, Set, StudyName, completing, print_json, read

commands = typer.Typer()
bench = typer.Typer(help="Build, show and download benchmarks.", no_args_is_help=True)
commands.add_typer(
    bench,
    name="bench",
    rich_help_panel=Panel.BENCHMARKS,
    epilog="Example: bo-act bench show digits_mlp",
)

Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Number of parallel processes.")]
Seeds = Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds per function.")]


@bench.command(epilog="Example: bo-act bench build digits_mlp --seeds 3 --workers 2")
def build(
    study: StudyName,
    *,
    seeds: Seeds = 3,
    repeat_best: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Seeds after the first only for the baselines and the best, N in all.",
        ),
    ] = None,
    functions: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train a part: the first N in shuffled order."),
    ] = None,
    workers: Workers = 1,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder for the runs (default: runs/STUDY/benchmark)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Output file (default: FOLDER/STUDY.parquet)."),
    ] = None,
    changes: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every function of a study's space; run it again to resume."""
    spec = read(study, changes)
    from bo_act import terminal
    from bo_act.benchmark.act_bench import write_act_bench
    from bo_act.benchmark.build import build_benchmark
    from bo_act.benchmark.parquet import save
    from bo_act.metrics import ACCURACY
    from bo_act.tasks.task import Task
    from bo_act.terminal import benchmarks

    folder = folder or Path("runs") / spec.name / "benchmark"
    out = out or folder / f"{spec.name}.parquet"
    with terminal.live(quiet=quiet) as events:
        built = build_benchmark(
            spec,
            seeds=seeds,
            repeat_best=repeat_best,
            functions=functions,
            workers=workers,
            folder=folder,
            events=events,
        )
        save(built, out)
        message = f"wrote {out}"
        if built.metric == ACCURACY:  # the only metric of Act-Bench files
            vectors = Task.load(spec).act_bench_vectors(built.features, events.vectors)
            released = out.with_suffix(".json.gz")
            write_act_bench(built, released, vectors=vectors)
            message += f" and, in the Act-Bench format, {released}"
    benchmarks.say(message)
    benchmarks.show(built, as_json=print_json if as_json else None)


@bench.command(epilog="Example: bo-act bench show digits_mlp")
def show(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Name of a benchmark, or path of its file.",
            autocompletion=completing("studies/benchmarks"),
        ),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of functions to list.")] = 10,
    as_json: Json = False,
) -> None:
    """Summarize a benchmark: counts, the best functions, and their selection bias."""
    from bo_act.benchmark.parquet import open_benchmark
    from bo_act.terminal import benchmarks

    benchmarks.show(open_benchmark(file), top=top, as_json=print_json if as_json else None)


@bench.command(epilog="Example: bo-act bench fetch https://example.org/act_bench_cnn.json.gz")
def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of a benchmark file.")],
    *,
    folder: Annotated[Path, typer.Option("--to", help="Folder to download to.")] = Path("data"),
    sha256: Annotated[str | None, typer.Option(help="Expected checksum of the file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Download a benchmark file; run it again to resume."""
    from bo_act.benchmark.fetch import fetch as download
    from bo_act.terminal import benchmarks

    with benchmarks.downloading(quiet=quiet) as progress:
        path = download(url, folder, sha256=sha256, progress=progress)
    print(path)


@commands.command(
    epilog="Example: bo-act compare --benchmark digits_mlp --method default --method random",
    rich_help_panel=Panel.BENCHMARKS,
)
def compare(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A comparison as a .toml file, instead of options."),
    ] = None,
    *,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            metavar="FILE",
            help="Name or path of a benchmark; repeatable.",
            autocompletion=completing("studies/benchmarks"),
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="Search method, or [NAME=]FILE.py:FUNCTION for a sampler of your own; repeatable.",
        ),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluations per search (default 100).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Searches per method (default 30).")
    ] = None,
    first_seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="First seed (default 0).")
    ] = None,
    told: Annotated[
        str | None,
        typer.Option(
            metavar="mean|run",
            help="What searches observe: the mean of all runs, or one run (the others judge it).",
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Evaluations after which methods are compared (default: all)."
        ),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            "--warm-start",
            metavar="FILE",
            help="Benchmark to learn from; repeatable.",
            autocompletion=completing("studies/benchmarks"),
        ),
    ] = None,
    workers: Workers = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for runs and figures.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write an HTML report of the comparison."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare search methods by replaying them on benchmarks."""
    from bo_act import terminal
    from bo_act.comparison.compare import compare as run_comparison
    from bo_act.comparison.plan import read_plan
    from bo_act.report.page import check_installed, write
    from bo_act.terminal import benchmarks

    if report is not None:
        check_installed()
    given = {
        "benchmarks": benchmark,
        "methods": method,
        "evaluations": evaluations,
        "seeds": seeds,
        "first_seed": first_seed,
        "at": at,
        "told": told,
        "warm_start": warm_start,
    }
    plan = read_plan(file, {key: value for key, value in given.items() if value not in (None, [])})
    with terminal.live(quiet=quiet) as events:
        comparison = run_comparison(
            plan.benchmarks,
            plan.chosen(),
            evaluations=plan.evaluations,
            seeds=plan.seeds,
            first_seed=plan.first_seed,
            at=plan.at,
            told=plan.told,
            initial=plan.initial,
            warm_start=plan.warm_start,
            workers=workers,
            out=out,
            events=events,
        )
    if out is not None:
        for path in comparison.save(out):
            benchmarks.say(f"wrote {path}")
    if report is not None:
        from bo_act.report.comparison import comparison_report

        title = out.resolve().name if out else Path(file or "comparison").stem
        benchmarks.say(f"wrote {write(comparison_report(comparison, title=title), report)}")
    if as_json:
        print_json(dict(comparison.summary))
    else:
        benchmarks.comparison(comparison)

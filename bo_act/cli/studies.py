"""Commands about spaces, studies and single functions."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bo_act.cli.options import (
    Json,
    Named,
    OneOrNamed,
    Panel,
    Quiet,
    Set,
    SpaceName,
    Storage,
    StudyName,
    completing,
    open_to_read,
    print_json,
    read,
)
from bo_act.errors import SpecError

commands = typer.Typer()


@commands.command(
    epilog="Example: bo-act space act_bench",
    rich_help_panel=Panel.FUNCTIONS,
)
def space(
    name: SpaceName,
    functions: Annotated[
        bool, typer.Option("--functions", help="List every distinct function.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count the functions of a search space."""
    from bo_act import terminal
    from bo_act.spaces.catalogue_cache import load_catalogue
    from bo_act.spaces.smoothness import count
    from bo_act.spaces.space import load_space

    loaded = load_space(name)
    if not loaded.can_be_listed and not (functions or as_json):
        with terminal.counting("computing candidate features") as progress:
            counted = count(loaded, loaded.spec.domain, progress=progress)
        terminal.large_space(loaded, counted)
        return
    with terminal.counting("deduplicating functions") as progress:
        catalogue = load_catalogue(loaded, progress=progress)
    with terminal.counting("computing candidate features") as progress:
        counted = count(catalogue, loaded.spec.domain, progress=progress)
    summary: dict[str, Any] = {
        "name": loaded.name,
        "expressions": len(loaded),
        "unique": len(catalogue),
        "finite": int(catalogue.finite.sum()),
        "require": loaded.spec.require,
        "satisfying": counted.satisfying | {"of": counted.of},
        "hash": catalogue.hash,
    }
    texts = map(catalogue.text, range(len(catalogue) if functions else 0))
    if as_json:
        print_json(summary | ({"functions": list(texts)} if functions else {}))
        return
    terminal.listed_space(catalogue, counted)
    for text in texts:
        print(text)


@commands.command(
    epilog="Example: bo-act features quickstart --workers 2",
    rich_help_panel=Panel.FUNCTIONS,
)
def features(
    study: StudyName,
    *,
    changes: Set = None,
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of parallel workers.")
    ] = 1,
    executor: Annotated[
        Literal["process", "ray"],
        typer.Option(help="Run workers on this machine, or on a Ray cluster (RAY_ADDRESS)."),
    ] = "process",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute and cache the features of every function, before any training."""
    spec = read(study, changes)
    from bo_act import terminal
    from bo_act.tasks.task import Task

    task = Task.load(spec)
    started = time.perf_counter()
    with terminal.live(quiet=quiet) as events:
        table = task.features(events.features, workers=workers, executor=executor)
    seconds = time.perf_counter() - started
    if not as_json:
        terminal.feature_table(table, seconds)
        terminal.feature_store(table)
        return
    missing = table.missing()
    print_json(
        {
            "study": spec.name,
            "functions": len(table),
            "blocks": {
                name: {
                    "columns": block.values.shape[1],
                    "present": int(block.present.sum()),
                    "missing": missing[name],
                }
                for name, block in table.blocks.items()
            },
            "layers": table.provenance.get("layers"),
            "uncovered": table.provenance.get("uncovered"),
            "store": table.provenance.get("store"),
            "seconds": round(seconds, 3),
            "hash": table.hash,
        }
    )


@commands.command(
    epilog="Example: bo-act run quickstart --set trials=40 --set training.epochs=20",
    rich_help_panel=Panel.SEARCH,
)
def run(
    study: StudyName,
    *,
    changes: Set = None,
    storage: Storage = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            "--warm-start", metavar="NAME", help="Benchmark or study to learn from; repeatable."
        ),
    ] = None,
    as_trials: Annotated[
        int | None,
        typer.Option(
            "--as-trials",
            min=0,
            metavar="N",
            help="Add the best N functions of each source as trials, marked with its name; "
            "dashboards show them, but the study does not count them.",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Number of parallel trials; with N GPUs, one each."),
    ] = 1,
    executor: Annotated[
        Literal["process", "ray"],
        typer.Option(help="Run workers on this machine, or on a Ray cluster (RAY_ADDRESS)."),
    ] = "process",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for better functions; run it again to resume."""
    learnt = [f"warm_start.sources={json.dumps(warm_start)}"] if warm_start else []
    learnt += [] if as_trials is None else [f"warm_start.as_trials={as_trials}"]
    spec = read(study, [*(changes or []), *learnt], storage)
    from bo_act import terminal
    from bo_act.study.running.runner import run_study

    with terminal.live(quiet=quiet) as events:
        result = run_study(spec, workers=workers, executor=executor, events=events)
    if as_json:
        print_json(result.as_json())
    else:
        terminal.study_tables(result)


@commands.command(
    epilog="Example: bo-act recommend quickstart --top 5",
    rich_help_panel=Panel.SEARCH,
)
def recommend(
    study: StudyName,
    *,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of functions to recommend.")
    ] = 10,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="FUNCTION",
            help="Your present function (default: the study's first baseline, else relu(x)).",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Benchmark to learn from; repeatable (default: all known by name).",
            autocompletion=completing("studies/benchmarks"),
        ),
    ] = None,
    changes: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend functions by their gains on other tasks; trains nothing."""
    spec = read(study, changes)
    from bo_act import terminal
    from bo_act.study.results.recommendation import recommend as recommended

    with terminal.counting("reading benchmarks", quiet=quiet) as progress:
        recommendation = recommended(
            spec, top=top, over=over, sources=source or None, progress=progress
        )
    if as_json:
        print_json(recommendation.as_json())
    else:
        terminal.recommendation(recommendation)


@commands.command(
    epilog="Example: bo-act best --storage sqlite:///mine.db --study mine",
    rich_help_panel=Panel.RESULTS,
)
def best(
    study: OneOrNamed = None,
    changes: Set = None,
    storage: Storage = None,
    named: Named = None,
    as_json: Json = False,
) -> None:
    """Show the results of a study so far."""
    opened = open_to_read(study, changes, storage, named)
    from bo_act import terminal
    from bo_act.study.results.summary import result_of

    result = result_of(opened.study, opened.spec, storage=opened.storage)
    if as_json:
        print_json(result.as_json())
    else:
        terminal.study_tables(result)


@commands.command(
    epilog="Example: bo-act why quickstart 17",
    rich_help_panel=Panel.RESULTS,
)
def why(
    study: OneOrNamed = None,
    trial: Annotated[
        str | None,
        typer.Argument(metavar="TRIAL", show_default=False, help="Number of the trial."),
    ] = None,
    *,
    changes: Set = None,
    storage: Storage = None,
    named: Named = None,
    as_json: Json = False,
) -> None:
    """Explain why a trial was proposed: its expected value and the evidence for it."""
    if named is not None and trial is None:  # the only argument, then
        study, trial = None, study
    number = _number(trial)
    opened = open_to_read(study, changes, storage, named)
    from bo_act import terminal
    from bo_act.study.results.explanation import why as explained
    from bo_act.study.running.worker import compute_candidate_features, make_sampler
    from bo_act.study.sampling.recorded import sampler_of
    from bo_act.tasks.task import Task

    lacking = ""
    with terminal.live(quiet=as_json) as events:
        if opened.spec is None:
            sampler, lacking = sampler_of(opened.study)
        else:
            task = Task.load(opened.spec)
            sampler = make_sampler(task, compute_candidate_features(task, events), opened.study)
    explanation = explained(opened.study, sampler, number, lacking=lacking)
    if as_json:
        print_json(explanation.as_json())
    else:
        terminal.explanation(explanation)


def _number(trial: str | None) -> int:
    if trial is None or not (trial.isascii() and trial.isdigit()):
        given = "nothing" if trial is None else repr(trial)
        raise SpecError(f"expected the number of a trial, from 0, as TRIAL, got {given}")
    return int(trial)


@commands.command(
    epilog="Example: bo-act show 'mul(sigmoid(x),erf(x))' --png erf_gate.png",
    rich_help_panel=Panel.FUNCTIONS,
)
def show(
    expression: Annotated[
        str, typer.Argument(metavar="FUNCTION", help="A function, e.g. 'max(relu(x),tanh(x))'.")
    ],
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Save the plot as a PNG file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plot a function and its derivative; print its mean, variance and output features."""
    from bo_act.activations.expressions import parse
    from bo_act.features.function_summary import draw, function_summary
    from bo_act.plot_style import save

    summary = function_summary(parse(expression))
    if png is not None:
        save(draw(summary), png, parents=False)
    if as_json:
        print_json(summary.as_json())
        return
    from bo_act import terminal

    if png is None:
        title = summary.activation
        terminal.plot(summary.x, {"value": summary.value, "slope": summary.slope}, title=title)
    else:
        print(f"wrote {png}", file=sys.stderr)
    terminal.key_values(summary.activation, summary.rows())

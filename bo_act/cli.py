"""The command line: ``bo-act``. Results on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 a defect in bo-act, 2 bad input (with one line that says what to do), 130
interrupted. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bo_act import __version__
from bo_act.errors import BoActError, SpecError

if TYPE_CHECKING:
    from bo_act.specs import StudySpec

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    help="Search for a better activation function for your network and data.",
    epilog="First steps: bo-act run quickstart",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Name of a study, or path of its .toml file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the study file."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Optuna storage: a URL, or a path (.log a journal, else SQLite).",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bo-act {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: bo-act space act_bench")
def space(
    name: Annotated[
        str, typer.Argument(metavar="SPACE", help="Name of a space, or path of its .toml file.")
    ],
    functions: Annotated[
        bool, typer.Option("--functions", help="List every distinct function.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count the functions of a search space."""
    from bo_act import terminal
    from bo_act.activations.kept import load_catalogue
    from bo_act.activations.space import load_space

    loaded = load_space(name)
    with terminal.counting() as progress:
        catalogue = load_catalogue(loaded, progress=progress)
    summary: dict[str, Any] = {
        "name": loaded.name,
        "expressions": len(loaded),
        "unique": len(catalogue),
        "finite": int(catalogue.finite.sum()),
        "hash": catalogue.hash,
    }
    texts = map(catalogue.text, range(len(catalogue) if functions else 0))
    if as_json:
        _print_json(summary | ({"functions": list(texts)} if functions else {}))
        return
    domain = loaded.spec.domain
    terminal.key_values(
        f"Space {loaded.name}: {loaded.spec.description}",
        {
            "expressions": f"{len(loaded):,}",
            "distinct functions": f"{len(catalogue):,}",
            f"finite on [{domain.low:g}, {domain.high:g}]": f"{summary['finite']:,}",
            "schemas": ", ".join(loaded.spec.schemas) or "none",
            "parameters": ", ".join(
                f"{slot} ({len(d.choices)})" for slot, d in loaded.distributions.items()
            ),
            "baselines": ", ".join(map(str, loaded.baselines)),
            "hash": catalogue.hash[:16],
        },
    )
    for text in texts:
        typer.echo(text)


@app.command(epilog="Example: bo-act features quickstart --workers 2")
def features(
    study: StudyName,
    *,
    changes: Set = None,
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many compute spectra at a time.")
    ] = 1,
    executor: Annotated[
        Literal["process", "ray"],
        typer.Option(help="Workers on this machine, or wherever Ray runs them (RAY_ADDRESS)."),
    ] = "process",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute what is known of every function before training (and keep it)."""
    spec = _read(study, changes)
    from bo_act import terminal
    from bo_act.study.task import Task

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
    _print_json(
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


@app.command(epilog="Example: bo-act run quickstart --set trials=40 --set training.epochs=20")
def run(
    study: StudyName,
    changes: Set = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for better functions; a second call goes on where the first one stopped."""
    spec = _read(study, changes, storage)
    from bo_act import terminal
    from bo_act.study.runner import run_study

    with terminal.live(quiet=quiet) as events:
        result = run_study(spec, events=events)
    if as_json:
        _print_json(result.as_json())
    else:
        terminal.study_tables(result)


@app.command(epilog="Example: bo-act best quickstart")
def best(
    study: StudyName,
    changes: Set = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Show what a study has found so far."""
    spec = _read(study, changes, storage)
    from bo_act import terminal
    from bo_act.study.results import read_result

    result = read_result(spec)
    if as_json:
        _print_json(result.as_json())
    else:
        terminal.study_tables(result)


@app.command(epilog="Example: bo-act show 'mul(sigmoid(x),erf(x))' --png erf_gate.png")
def show(
    expression: Annotated[str, typer.Argument(help="A function, e.g. 'max(relu(x),tanh(x))'.")],
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write the plot to a picture.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plot a function and its slope, with its mean, variance and output features."""
    from bo_act.activations.expressions import parse
    from bo_act.features.portrait import draw_png, portrait

    found = portrait(parse(expression))
    if png is not None:
        draw_png(found, png)
    if as_json:
        _print_json(found.as_json())
        return
    from bo_act import terminal

    if png is None:
        terminal.plot(found.x, {"value": found.value, "slope": found.slope}, title=found.activation)
    else:
        typer.echo(f"wrote {png}", err=True)
    terminal.key_values(found.activation, found.rows())


def _read(study: str, changes: list[str] | None, storage: str | None = None) -> StudySpec:
    from bo_act.specs import read_study

    overrides = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise SpecError(
                f"--set expects KEY=VALUE, e.g. --set training.epochs=20, got {change!r}"
            )
        overrides[key.strip()] = value.strip()
    if storage is not None:
        overrides["storage"] = json.dumps(storage)
    spec = read_study(study, overrides)
    # Only now that the file is known to be right is the time spent to import it all.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return spec


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def _quiet_libraries() -> None:
    # Said by libraries about their own inside, at import; nothing that a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.showwarning = _warn  # type: ignore[assignment]


def _warn(message: Warning | str, *_: object) -> None:
    # A line for people, who have no use for the place in our code.
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def main() -> None:
    """Run the command line; the entry point of ``bo-act``."""
    _quiet_libraries()
    try:
        app()
    except BoActError as error:
        sys.exit(_complain(f"error: {error}", code=2))
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer answers Ctrl-C with this code and not a word
            _complain("interrupted; the same command goes on from here", code=INTERRUPTED)
        raise


def _complain(message: str, *, code: int) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return code


if __name__ == "__main__":
    main()
